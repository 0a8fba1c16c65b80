"""Class "upstream impersonated": another service of the same fleet, with a good certificate of its own, stands where an
upstream is expected. It gets no byte of a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.reasons import Reason
from foundation.tls import server_context
from policies.upstreams import Address, UpstreamTls
from tests.support.gateway import DataPlane, route
from tests.support.tls_upstream import serving

EXPECTED = UpstreamTls(fleet=True, spiffe_id="spiffe://fleet.example/service/store", client_certificate=True)


@pytest.mark.parametrize(
    "names",
    [
        ("spiffe://fleet.example/service/other",),
        ("spiffe://fleet.example/node/store",),
        ("spiffe://fleet.example/service/other", EXPECTED.spiffe_id),
        (EXPECTED.spiffe_id, "spiffe://fleet.example/service/other"),
        (),
    ],
)
async def test_another_service_gets_no_request(tmp_path: Path, names: tuple[str, ...]) -> None:
    plane = DataPlane(tmp_path, (route(Address("127.0.0.1", 1)),))
    pair = plane.authority.services("other", *names) if names else plane.authority.server("other", "store.internal")
    async with serving(server_context(pair, client_roots=None)) as (address, proven):
        plane.routes = (route(address, pool={"tls": EXPECTED}),)
        plane.publish(revision=2)
        async with plane.running():
            assert (await (await plane.connect()).get()).reason == Reason.UPSTREAM_UNTRUSTED.code
    assert proven == []

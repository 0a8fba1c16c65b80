"""Row "leaf is not the proven key" (GHSA-mrpr-756c-xm47): whatever certificates a client sends along, it is who its own
leaf says, for that key alone was proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.tls import KeyPair
from tests.support.gateway import RawUpstream, gateway_to


@pytest.mark.parametrize("copies", [1, 3])
async def test_a_victims_certificate_as_filler_changes_nothing(tmp_path: Path, copies: int) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.know("victim")
        own, victim = plane.pair("edge-1"), plane.pair("victim")
        filled = tmp_path / "filled.pem"
        filled.write_bytes(own.certificate.read_bytes() + victim.certificate.read_bytes() * copies)
        client = await plane.connect(KeyPair(filled, own.key))
        assert (await client.get()).status == 200
        assert [entry.identity for entry in plane.recorded.entries] == ["spiffe://fleet.example/node/edge-1"]
    assert b"x-sallyport-identity: spiffe://fleet.example/node/edge-1\r\n" in upstream.seen[0]
    assert b"victim" not in upstream.seen[0]

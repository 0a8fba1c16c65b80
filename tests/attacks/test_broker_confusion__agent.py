"""Row "broker confusion" (Teleport 10.3.15, 10.3.11), from the node's side: somebody else's server at a gateway's
address joins nothing. Its certificate is of our authority and bears the name that was dialled, and still it is no
gateway: a service, another node, or a gateway of another trust domain that the same root certifies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foundation.reasons import Reason
from tests.fakes import gateway as gateways
from tests.fakes.gateway import FakeGateway
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import Node


@pytest.mark.parametrize(
    ("kind", "trust_domain"), [("service", "fleet.example"), ("node", "fleet.example"), ("gateway", "other.example")]
)
async def test_a_server_that_is_no_gateway_of_ours_gets_no_tunnel(
    tmp_path: Path, kind: str, trust_domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "TRUST_DOMAIN", trust_domain)
    async with FakeGateway(SmallAuthority(tmp_path), name="impostor", kind=kind).listening() as server:
        node = Node(server.authority, [server.address])
        async with node.running(), asyncio.timeout(10):
            tunnel = node.tunnels.tunnels[0]
            while tunnel.fault is None and not tunnel.is_up:
                await asyncio.sleep(0.005)
            assert not tunnel.is_up
            assert tunnel.fault is not None
            assert tunnel.fault.reason is Reason.SERVER_UNTRUSTED
            assert not any(end.hello for end in server.ends)  # it was not even greeted

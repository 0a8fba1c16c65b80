"""From gateway to gateway: the one that holds the target's tunnel is asked by mTLS, and decides for itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from foundation.identifiers import Kind, SpiffeId
from foundation.identity import Revocation
from foundation.reasons import Reason
from foundation.wire.streams import StreamRelay, StreamRequest
from foundation.wire.tunnel import RELAY_PROTOCOL
from gateway.broker.claims import Claim
from gateway.broker.gateways_relay import GatewaysRelay
from gateway.broker.links import Links
from tests.fakes.trust import DENY, spiffe
from tests.support.brokered import BrokeredPlane, Node, Use, settled
from tests.support.certificates import SmallAuthority
from tests.support.gateway import OwnFiles

FIRST, SECOND = spiffe("gw-1", Kind.GATEWAY), spiffe("gw-2", Kind.GATEWAY)


class Told:
    """Implements `gateway.broker.gateways_relay.Finder`: what other gateways have said, as the test says."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []

    async def find(self, node: SpiffeId) -> tuple[Claim, ...]:
        return tuple(self.claims)


@dataclass
class Two:
    """Two gateways of one authority. The first may ask the second."""

    first: BrokeredPlane
    second: BrokeredPlane
    told: Told
    links: Links

    def claim(self, **changes: object) -> None:
        host, port = self.second.address
        claim = Claim(SECOND, f"{host}:{port}", "incarnation", 1)
        self.told.claims.append(replace(claim, **changes))  # type: ignore[arg-type]  # what a test says


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    first = BrokeredPlane(folders[0])
    second = BrokeredPlane(folders[1], like=first)
    second.prove(str(SECOND))
    for plane in (first, second):
        plane.know("a")
        plane.know("b")
        plane.know("gw-1", Kind.GATEWAY)
    told, links = Told(), Links(first.clock)
    own = OwnFiles(first.authority.service(str(FIRST), "relay"), first.authority.root)
    first.join(GatewaysRelay(told, FIRST, own, links))
    async with first.running(), second.running():
        try:
            yield Two(first, second, told, links)
        finally:
            await links.close()


async def test_a_stream_crosses_to_the_gateway_that_has_the_target(two: Two) -> None:
    a, b = await two.first.node("a"), await two.second.node("b")
    two.claim()
    use = await a.reach("b")
    assert use.answer is not None
    (call,) = b.calls
    assert call.call is not None
    assert call.call.source == spiffe("a")
    assert call.call.decision == two.second.recorded.entries[-1].id
    use.write(b"x" * 1_000_000)
    call.write(b"y" * 1_000_000)
    await settled(lambda: len(call.data) == 1_000_000 == len(use.data))


async def test_the_other_gateway_decides_too(two: Two) -> None:
    a, b = await two.first.node("a"), await two.second.node("b")
    two.claim()
    two.second.engine.answer = lambda query: DENY
    use = await a.reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.NO_GRANT
    assert not b.calls


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("place", ["first", "second"])
async def test_either_gateway_cuts_both_ends(two: Two, name: str, place: str) -> None:
    a, b = await two.first.node("a"), await two.second.node("b")
    two.claim()
    use = await a.reach("b")
    plane: BrokeredPlane = getattr(two, place)
    plane.store.apply(Revocation(1, spiffe(name), "", "key_compromise", plane.clock.now()))
    await settled(lambda: use.cut is not None and b.calls[0].cut is not None)


async def test_an_impostor_at_the_claimed_address_is_not_believed(two: Two) -> None:
    a, b = await two.first.node("a"), await two.second.node("b")
    two.claim(gateway=spiffe("gw-3", Kind.GATEWAY))
    use = await a.reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.RELAY_REFUSED
    assert not b.calls


async def test_a_claim_newer_than_the_tunnel_is_refused(two: Two) -> None:
    """The claim was made by somebody who holds the node's newest tunnel: this one is stale."""
    a, b = await two.first.node("a"), await two.second.node("b")
    two.claim(epoch=1 << 40)
    use = await a.reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.TARGET_ABSENT
    assert not b.calls


async def test_the_next_gateway_is_asked_when_one_is_gone(two: Two) -> None:
    a, b = await two.first.node("a"), await two.second.node("b")
    two.claim(gateway=spiffe("gw-3", Kind.GATEWAY), relay="127.0.0.1:1")
    two.claim()
    use = await a.reach("b")
    assert use.answer is not None
    assert len(b.calls) == 1


async def test_a_node_cannot_relay(two: Two) -> None:
    node = await two.second.dial("a", protocol=RELAY_PROTOCOL)
    await settled(lambda: node.is_lost)


async def _relay(two: Two, certificate: bytes, kind: Kind = Kind.GATEWAY) -> tuple[Node, Use]:
    """What gateway `gw-1` gets for passing on that the holder of `certificate` asks."""
    relaying = await two.second.dial("gw-1", kind=kind, protocol=RELAY_PROTOCOL)
    use = Use()
    relay = StreamRelay(StreamRequest("database", "b"), certificate, 1, "")
    use.stream = relaying.tunnel.open(use, relay.encode())
    await settled(lambda: use.answer is not None or use.refusal is not None or relaying.is_lost)
    return relaying, use


def _der(authority: SmallAuthority, name: str, kind: Kind = Kind.NODE) -> bytes:
    pem = authority.client(str(spiffe(name, kind)), f"relayed-{name}").certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


async def test_a_relaying_gateway_cannot_make_up_a_node(two: Two, tmp_path: Path) -> None:
    b = await two.second.node("b")
    _, honest = await _relay(two, _der(two.second.authority, "a"))
    assert honest.answer is not None
    folder = tmp_path / "forged"
    folder.mkdir()
    _, forged = await _relay(two, _der(SmallAuthority(folder, "fleet"), "a"))
    assert forged.refusal is not None
    assert forged.refusal.reason is Reason.CLIENT_CERTIFICATE_INVALID
    assert len(b.calls) == 1


async def test_a_relayed_certificate_that_is_revoked_here_is_refused(two: Two) -> None:
    b = await two.second.node("b")
    two.second.store.apply(Revocation(1, spiffe("a"), "", "key_compromise", two.second.clock.now()))
    _, use = await _relay(two, _der(two.second.authority, "a"))
    assert use.refusal is not None
    assert use.refusal.reason is Reason.IDENTITY_REVOKED
    assert not b.calls


async def test_a_revoked_gateway_relays_nothing(two: Two) -> None:
    await two.second.node("b")
    two.second.store.apply(Revocation(1, FIRST, "", "key_compromise", two.second.clock.now()))
    relaying, use = await _relay(two, _der(two.second.authority, "a"))
    assert relaying.is_lost
    assert use.answer is None

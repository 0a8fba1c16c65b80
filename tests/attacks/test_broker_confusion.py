"""Row "broker confusion" (Teleport 10.3.15, 10.3.11): a stream is bound to source, target, route and revision at both
ends, and nobody can hold a tunnel, or speak over a relay, in another's name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.offer import Offer, Opening
from foundation.identifiers import Kind
from foundation.identity import IdentityRecord, State
from foundation.reasons import Reason
from foundation.wire.streams import StreamRelay, StreamRequest
from foundation.wire.tunnel import RELAY_PROTOCOL
from policies.model import Answer, Query
from tests.fakes.trust import ALLOW, DENY, spiffe
from tests.support.brokered import BrokeredPlane, Node, Use, settled
from tests.support.certificates import SmallAuthority


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[BrokeredPlane]:
    async with BrokeredPlane(tmp_path).running() as plane:
        yield plane


async def _asked(node: Node, document: bytes) -> Use:
    use = Use()
    use.stream = node.tunnel.open(use, document)
    await settled(lambda: use.answer is not None or use.refusal is not None or node.is_lost)
    return use


async def _relay(plane: BrokeredPlane, certificate: bytes, epoch: int = 1, kind: Kind = Kind.GATEWAY) -> Use:
    """What somebody gets for passing on that the holder of `certificate` wants to reach `b`."""
    plane.know("relaying", kind)
    relaying = await plane.dial("relaying", kind=kind, protocol=RELAY_PROTOCOL)
    return await _asked(relaying, StreamRelay(StreamRequest("database", "b"), certificate, epoch, "").encode())


def _certificate(authority: SmallAuthority, name: str) -> bytes:
    pem = authority.client(str(spiffe(name)), f"relayed-{name}").certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


async def test_the_source_is_who_proved_the_key_whatever_is_said(plane: BrokeredPlane) -> None:
    a, b = await plane.node("a"), await plane.node("b")
    plane.know("victim")
    forged = json.dumps({"route": "database", "target": "b", "protocol": "tcp", "source": str(spiffe("victim"))})
    use = await _asked(a, forged.encode())
    assert use.refusal is not None
    assert not b.calls
    await a.reach("b")
    assert b.calls[0].call is not None
    assert b.calls[0].call.source == spiffe("a")


async def test_a_tunnel_takes_the_place_of_its_own_node_alone(plane: BrokeredPlane) -> None:
    """The thief is a node too, and says HELLO as loudly as it can: streams to the victim still go to the victim."""
    a, victim, thief = await plane.node("a"), await plane.node("victim"), await plane.node("thief")
    await a.reach("victim")
    assert len(victim.calls) == 1
    assert not thief.calls


async def test_what_is_permitted_on_one_route_reaches_no_other_service(plane: BrokeredPlane) -> None:
    """The service is the route's in the revision that permitted, and the target is told route and revision with it."""
    a, b = await plane.node("a"), await plane.node("b")
    await a.reach("b")
    await a.reach("b", "metrics", "udp")
    told = [(use.call.route, use.call.service, use.call.revision) for use in b.calls if use.call is not None]
    assert told == [("database", "postgres", 1), ("metrics", "statsd", 1)]


async def test_a_permit_to_reach_one_target_is_none_to_reach_another(plane: BrokeredPlane) -> None:
    a, b, c = await plane.node("a"), await plane.node("b"), await plane.node("c")

    def only_c(query: Query) -> Answer:
        return ALLOW if query.target is not None and query.target.id == spiffe("c") else DENY

    plane.engine.answer = only_c
    assert (await a.reach("c")).answer is not None
    assert (await a.reach("b")).refusal is not None
    assert (len(b.calls), len(c.calls)) == (0, 1)


async def test_the_target_judges_by_its_own_signed_revision() -> None:
    """A gateway led astray announces what no revision offers: each part of the binding is compared by itself."""
    data = {
        "workspace": {
            "routes": {
                "database": {"type": "stream", "service": "postgres", "kinds": ["node"]},
                "shell": {"type": "stream", "service": "ssh", "kinds": ["operator"]},
            },
            "segments": {"web": ["data"]},
        }
    }
    own = IdentityRecord(spiffe("b"), State.ACTIVE, 1, segment="data")
    offer = Offer.of(data, own, ["postgres", "ssh"], floor=7)

    def judged(**changes: object) -> Reason | None:
        opening = {"source": spiffe("a"), "segments": ("web",), "route": "database", "service": "postgres"}
        return offer.refusal(Opening(**{**opening, "revision": 7, **changes}))  # type: ignore[arg-type]

    assert judged() is None
    assert judged(revision=8) is None  # a canary's
    assert judged(revision=6) is not None
    assert judged(service="ssh") is not None
    assert judged(route="shell", service="ssh") is not None
    assert judged(segments=("lab",)) is not None
    assert judged(source=spiffe("a", Kind.OPERATOR)) is not None


async def test_a_relaying_gateway_cannot_make_up_a_node(plane: BrokeredPlane, tmp_path: Path) -> None:
    b = await plane.node("b")
    plane.know("a")
    assert (await _relay(plane, _certificate(plane.authority, "a"))).answer is not None
    folder = tmp_path / "forged"
    folder.mkdir()
    use = await _relay(plane, _certificate(SmallAuthority(folder, "fleet"), "a"))
    assert use.refusal is not None
    assert use.refusal.reason is Reason.CLIENT_CERTIFICATE_INVALID
    assert len(b.calls) == 1


@pytest.mark.parametrize("kind", [Kind.NODE, Kind.OPERATOR, Kind.SERVICE])
async def test_nobody_but_a_gateway_relays(plane: BrokeredPlane, kind: Kind) -> None:
    b = await plane.node("b")
    plane.know("a")
    use = await _relay(plane, _certificate(plane.authority, "a"), kind=kind)
    assert use.answer is None
    assert not b.calls


async def test_who_lost_the_claim_does_not_answer_for_the_node(plane: BrokeredPlane) -> None:
    b = await plane.node("b")
    plane.know("a")
    use = await _relay(plane, _certificate(plane.authority, "a"), epoch=1 << 40)
    assert use.refusal is not None
    assert use.refusal.reason is Reason.TARGET_ABSENT
    assert not b.calls


async def test_no_tunnel_speaks_of_another_tunnels_streams(plane: BrokeredPlane) -> None:
    """Numbers of streams are the tunnel's own: a frame of a number that another tunnel uses is a breach."""
    a, b, thief = await plane.node("a"), await plane.node("b"), await plane.node("thief")
    use = await a.reach("b")
    assert use.stream is not None
    assert thief.transport is not None
    thief.transport.write(b"\x05" + use.stream.number.to_bytes(4) + b"\0\0\0\1x")
    await settled(lambda: thief.is_lost)
    use.write(b"mine")
    await settled(lambda: bytes(b.calls[0].data) == b"mine")

"""Streams between nodes over a real listener: decided with both ends, joined, and cut with either."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foundation.identifiers import Kind
from foundation.identity import AttestationClass, IdentityChanged, Posture, PostureChanged, Revocation, Verdict
from foundation.reasons import Reason
from foundation.wire.tunnel import WIDEST, WINDOW
from gateway.broker.settings import BrokerSettings
from policies.model import Answer, Query
from tests.fakes.trust import ALLOW, DENY, FakeEngine, record, spiffe
from tests.support.brokered import DATAGRAM_ROUTE, STREAM_ROUTE, BrokeredPlane, Node, settled

FAILED = Posture(AttestationClass.HARDWARE, Verdict.FAILED)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[BrokeredPlane]:
    async with BrokeredPlane(tmp_path).running() as plane:
        yield plane


@pytest.fixture
async def nodes(plane: BrokeredPlane) -> tuple[Node, Node]:
    return await plane.node("a"), await plane.node("b")


async def test_a_stream_is_decided_with_both_ends_and_joined(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    use = await a.reach("b")
    (call,) = b.calls
    assert use.answer is not None
    assert call.call is not None
    assert (call.call.source, call.call.route, call.call.service) == (spiffe("a"), "database", "postgres")
    assert call.call.segments == ("edge",)
    assert call.call.revision == 1
    assert call.call.decision == use.answer.decision == plane.recorded.entries[-1].id
    use.write(b"hello " * 50_000)
    call.write(b"world")
    await settled(lambda: len(call.data) == 300_000 and bytes(use.data) == b"world")


async def test_policy_sees_both_identities_and_postures(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    seen: list[Query] = []

    def answer(query: Query) -> Answer:
        seen.append(query)
        return ALLOW

    plane.engine.answer = answer
    await nodes[0].reach("b")
    (query,) = seen
    assert (query.identity.id, query.target and query.target.id) == (spiffe("a"), spiffe("b"))
    assert query.target_posture is not None
    assert (query.request.action, query.request.method) == ("create", "")


async def test_each_side_ends_for_itself(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    use = await nodes[0].reach("b")
    call = nodes[1].calls[0]
    assert use.stream is not None
    assert call.stream is not None
    use.write(b"question")
    use.stream.end()
    await settled(lambda: call.has_ended)
    assert bytes(call.data) == b"question"
    call.write(b"answer")
    call.stream.end()
    await settled(lambda: use.has_ended and bytes(use.data) == b"answer")
    await settled(lambda: plane.registry.open_count == 0)
    assert nodes[0].tunnel.state.open_count == 0 == nodes[1].tunnel.state.open_count


async def test_a_denied_target_hears_nothing(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    plane.engine.answer = lambda query: DENY
    heard = nodes[1].heard
    use = await nodes[0].reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.NO_GRANT
    assert use.refusal.decision == plane.recorded.entries[-1].id
    assert nodes[1].heard == heard
    assert not nodes[1].calls


async def test_the_record_names_the_target(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    await nodes[0].reach("b")
    entry = plane.recorded.entries[-1]
    assert (entry.allow, entry.identity, entry.route) == (True, str(spiffe("a")), "database")
    assert (entry.method, entry.target) == ("STREAM", "b")


@pytest.mark.parametrize(
    ("target", "route", "protocol", "reason"),
    [
        ("b", "nowhere", "tcp", Reason.ROUTE_UNKNOWN),
        ("b", "database", "udp", Reason.ROUTE_UNKNOWN),
        ("c", "database", "tcp", Reason.TARGET_UNTRUSTED),
    ],
)
async def test_what_leads_nowhere_is_refused(
    plane: BrokeredPlane, nodes: tuple[Node, Node], target: str, route: str, protocol: str, reason: Reason
) -> None:
    use = await nodes[0].reach(target, route, protocol)
    assert use.refusal is not None
    assert use.refusal.reason is reason
    assert plane.recorded.entries[-1].reasons[0] == reason.code


async def test_a_known_node_without_a_tunnel_is_absent(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    plane.know("c")
    use = await nodes[0].reach("c")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.TARGET_ABSENT


async def test_who_may_not_know_is_not_told_that_a_target_is_absent(
    plane: BrokeredPlane, nodes: tuple[Node, Node]
) -> None:
    plane.know("c")
    plane.engine.answer = lambda query: DENY
    use = await nodes[0].reach("c")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.NO_GRANT


async def test_the_target_may_refuse(nodes: tuple[Node, Node]) -> None:
    nodes[1].check = lambda call: Reason.SERVICE_NOT_OFFERED
    use = await nodes[0].reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.SERVICE_NOT_OFFERED


async def test_a_target_that_never_answers_is_not_waited_for(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    nodes[1].answers = False
    use = nodes[0].open("b")
    await settled(lambda: bool(nodes[1].calls))
    await plane.advance(11.0)
    await settled(lambda: use.refusal is not None)
    assert use.refusal is not None
    assert use.refusal.reason is Reason.UPSTREAM_TIMEOUT
    await settled(lambda: nodes[1].calls[0].cut is not None)


async def test_who_gives_up_asking_is_forgotten(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    nodes[1].answers = False
    use = nodes[0].open("b")
    await settled(lambda: bool(nodes[1].calls))
    assert use.stream is not None
    use.stream.reset(Reason.TUNNEL_LOST)
    await settled(lambda: nodes[1].calls[0].cut is not None)
    assert plane.registry.open_count == 0


async def test_datagrams_stay_whole(nodes: tuple[Node, Node]) -> None:
    use = await nodes[0].reach("b", "metrics", "udp")
    assert use.stream is not None
    for each in (b"one", b"", b"x" * 60_000):
        assert use.stream.send_datagram(each)
    call = nodes[1].calls[0]
    await settled(lambda: len(call.datagrams) == 3)
    assert call.datagrams == [b"one", b"", b"x" * 60_000]


# --- ends with either side's permission -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_revocation_of_either_cuts_both(plane: BrokeredPlane, nodes: tuple[Node, Node], name: str) -> None:
    use = await nodes[0].reach("b")
    other = await nodes[1].reach("a")
    plane.store.apply(Revocation(1, spiffe(name), "", "key_compromise", plane.clock.now()))
    await settled(lambda: use.cut is not None and other.cut is not None)
    await settled(lambda: nodes[0 if name == "a" else 1].is_lost)
    assert not nodes[1 if name == "a" else 0].is_lost
    assert plane.registry.open_count == 0


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_failed_posture_of_either_cuts(plane: BrokeredPlane, nodes: tuple[Node, Node], name: str) -> None:
    use = await nodes[0].reach("b")
    running = plane.registry.run()
    async with _background(running):
        plane.store.apply(PostureChanged(2, spiffe(name), FAILED, plane.clock.now() + 100))
        await settled(lambda: use.cut is not None and nodes[1].calls[0].cut is not None)
    assert use.cut is Reason.CUT_BY_CHANGE


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_change_of_either_is_decided_again(plane: BrokeredPlane, nodes: tuple[Node, Node], name: str) -> None:
    use = await nodes[0].reach("b")

    def moved(query: Query) -> Answer:
        assert query.target is not None
        return DENY if "lab" in (query.identity.segment, query.target.segment) else ALLOW

    plane.engine.answer = moved
    async with _background(plane.registry.run()):
        plane.store.apply(IdentityChanged(2, replace(record(name, epoch=2), segment="lab")))
        await settled(lambda: use.cut is not None and nodes[1].calls[0].cut is not None)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_silence_of_either_ends_trust(plane: BrokeredPlane, nodes: tuple[Node, Node], name: str) -> None:
    plane.store.apply(
        PostureChanged(1, spiffe(name), Posture(AttestationClass.HARDWARE, Verdict.PASSED), plane.clock.now() + 30)
    )
    use = await nodes[0].reach("b")
    async with _background(plane.registry.run()):
        await plane.advance(29.0)
        assert use.cut is None
        await plane.advance(2.0)
        await settled(lambda: use.cut is not None)
    assert use.cut is Reason.CUT_BY_DEADLINE


async def test_a_revision_that_takes_the_route_away_cuts(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    use = await nodes[0].reach("b")
    other = await nodes[0].reach("b", "metrics", "udp")
    plane.routes = (DATAGRAM_ROUTE,)
    async with _background(plane.registry.run()):
        plane.publish(revision=2)
        await settled(lambda: use.cut is not None)
        assert other.cut is None


async def test_a_revision_that_leads_to_another_service_cuts(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    use = await nodes[0].reach("b")
    plane.routes = (replace(STREAM_ROUTE, service="mysql"),)
    async with _background(plane.registry.run()):
        plane.publish(revision=2, engine=FakeEngine(cached=True))
        await settled(lambda: use.cut is not None)


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_lost_tunnel_ends_its_streams(plane: BrokeredPlane, nodes: tuple[Node, Node], gone: int) -> None:
    use = await nodes[0].reach("b")
    nodes[gone].close()
    ends = (use, nodes[1].calls[0])
    await settled(lambda: ends[1 - gone].cut is not None)
    assert ends[1 - gone].cut is Reason.TUNNEL_LOST
    await settled(lambda: plane.registry.open_count == 0)


# --- tunnels ----------------------------------------------------------------------------------------------


async def test_the_newest_tunnel_of_a_node_is_asked(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    newer = await plane.dial("b")
    await settled(lambda: newer.greeting is not None)
    await settled(lambda: getattr(plane.broker.holder(spiffe("b")), "epoch", 0) > 2)
    await nodes[0].reach("b")
    assert len(newer.calls) == 1
    assert not nodes[1].calls
    nodes[1].close()  # the older one leaves: the newer stays the one to ask
    await settled(lambda: plane.listener.open_count == 2)
    await nodes[0].reach("b")
    assert len(newer.calls) == 2


@pytest.mark.parametrize("kind", [Kind.OPERATOR, Kind.SERVICE, Kind.GATEWAY])
async def test_only_nodes_hold_tunnels(plane: BrokeredPlane, kind: Kind) -> None:
    plane.know("x", kind)
    node = await plane.dial("x", kind=kind)
    await settled(lambda: node.is_lost)
    assert plane.broker.open_count == 0


async def test_a_revoked_node_gets_no_tunnel(plane: BrokeredPlane) -> None:
    plane.know("x")
    plane.store.apply(Revocation(1, spiffe("x"), "", "key_compromise", plane.clock.now()))
    node = await plane.dial("x")
    await settled(lambda: node.is_lost)
    assert plane.broker.open_count == 0


async def test_an_unknown_node_gets_no_tunnel(plane: BrokeredPlane) -> None:
    node = await plane.dial("stranger")
    await settled(lambda: node.is_lost)


async def test_who_breaks_the_protocol_is_ended(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    assert nodes[0].transport is not None
    nodes[0].transport.write(b"\xff" * 9)
    await settled(lambda: nodes[0].is_lost)
    assert Reason.TUNNEL_MALFORMED in plane.metrics.refused
    assert not nodes[1].is_lost


async def test_a_silent_tunnel_is_ended(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    await plane.advance(40.0)
    heard = nodes[1].heard
    nodes[1].tunnel.ping()
    await settled(lambda: nodes[1].heard > heard)  # the answer
    await plane.advance(6.0)
    await settled(lambda: nodes[0].is_lost)
    assert not nodes[1].is_lost


async def test_a_draining_gateway_takes_no_new_streams_and_keeps_the_open_ones(
    plane: BrokeredPlane, nodes: tuple[Node, Node]
) -> None:
    use = await nodes[0].reach("b")
    async with _background(plane.listener.drain(60.0)):
        await plane.advance(1.0)
        await settled(lambda: nodes[0].is_draining and nodes[1].is_draining)
        use.write(b"still")
        await settled(lambda: bytes(nodes[1].calls[0].data) == b"still")
        assert not nodes[0].is_lost


async def test_a_draining_worker_stays_the_one_to_ask_until_the_node_has_another_tunnel(
    siblings: tuple[BrokeredPlane, BrokeredPlane],
) -> None:
    """So that a reload, or an upgrade, loses no stream that is asked for meanwhile."""
    first, second = siblings
    a, b = await first.node("a"), await second.node("b")
    async with _background(second.listener.drain(60.0)):
        await second.advance(1.0)
        await settled(lambda: b.is_draining)
        assert (await a.reach("b")).answer is not None
        newer = await first.node("b")
        for use in b.calls:
            assert use.stream is not None
            use.stream.reset(Reason.TUNNEL_LOST)
        await second.advance(0.5)
        await settled(lambda: b.is_lost)
        assert (await a.reach("b")).answer is not None
        assert len(newer.calls) == 1


async def test_a_node_that_gets_no_other_tunnel_is_not_waited_for(plane: BrokeredPlane) -> None:
    node = await plane.node("a")
    async with _background(plane.listener.drain(60.0)):
        await plane.advance(1.0)
        await settled(lambda: node.is_draining)
        assert not node.is_lost
        await plane.advance(4.0)
        await settled(lambda: node.is_lost)


async def test_a_tunnel_lasts_no_longer_than_its_certificate(tmp_path: Path) -> None:
    async with BrokeredPlane(tmp_path, settings=BrokerSettings(silence=1e9)).running() as plane:
        node = await plane.node("a")
        holder = plane.broker.holder(spiffe("a"))
        assert holder is not None
        plane.clock.advance(holder.peer.not_after - plane.clock.now() - 20.0)
        await plane.advance(6.0)
        assert not node.is_lost
        plane.clock.advance(15.0)
        await plane.advance(6.0)
        await settled(lambda: node.is_lost)


async def test_a_reader_that_does_not_read_holds_back_its_writer(
    plane: BrokeredPlane, nodes: tuple[Node, Node]
) -> None:
    nodes[1].reads = False
    use = await nodes[0].reach("b")
    other = await nodes[0].reach("b", "metrics", "udp")
    for _ in range(64):
        use.write(b"x" * WINDOW)
    call = nodes[1].calls[0]
    await settled(lambda: len(call.data) == WINDOW)
    assert use.sent_bytes <= WINDOW + WIDEST
    assert other.stream is not None
    assert other.stream.send_datagram(b"passes")
    await settled(lambda: bool(nodes[1].calls[1].datagrams))
    assert len(call.data) == WINDOW
    assert call.stream is not None
    call.reads = True
    call.stream.consumed(WINDOW)
    await settled(lambda: len(call.data) == 64 * WINDOW)


async def test_a_route_may_bound_pauses(tmp_path: Path) -> None:
    async with BrokeredPlane(tmp_path, (replace(STREAM_ROUTE, idle_timeout=5.0),)).running() as plane:
        a, b = await plane.node("a"), await plane.node("b")
        use = await a.reach("b")
        await plane.advance(4.0)
        use.write(b"alive")
        await settled(lambda: bool(b.calls[0].data))
        await plane.advance(4.0)
        assert use.cut is None
        await plane.advance(2.0)
        await settled(lambda: use.cut is Reason.REQUEST_TIMEOUT and b.calls[0].cut is not None)


async def test_streams_of_one_tunnel_are_bounded(tmp_path: Path) -> None:
    async with BrokeredPlane(tmp_path, settings=BrokerSettings(streams=2)).running() as plane:
        a = await plane.node("a")
        await plane.node("b")
        first, second = await a.reach("b"), await a.reach("b")
        third = await a.reach("b")
        assert (first.refusal, second.refusal) == (None, None)
        assert third.refusal is not None
        assert third.refusal.reason is Reason.STREAM_LIMIT
        assert not a.is_lost


# --- siblings ---------------------------------------------------------------------------------------------


@pytest.fixture
async def siblings(tmp_path: Path) -> AsyncIterator[tuple[BrokeredPlane, BrokeredPlane]]:
    first = BrokeredPlane(tmp_path, worker=1)
    second = BrokeredPlane(tmp_path, worker=2, like=first)
    async with first.running(), second.running():
        for plane, name in ((first, "b"), (second, "a")):
            plane.know(name)
        yield first, second


async def test_a_stream_goes_to_the_worker_that_has_the_targets_tunnel(
    siblings: tuple[BrokeredPlane, BrokeredPlane],
) -> None:
    first, second = siblings
    a, b = await first.node("a"), await second.node("b")
    use = await a.reach("b")
    assert use.answer is not None
    use.write(b"x" * 1_000_000)
    call = b.calls[0]
    await settled(lambda: len(call.data) == 1_000_000)
    assert call.call is not None
    assert call.call.source == spiffe("a")
    assert call.call.decision == second.recorded.entries[-1].id
    assert use.answer.decision == first.recorded.entries[-1].id


async def test_the_other_worker_decides_too(siblings: tuple[BrokeredPlane, BrokeredPlane]) -> None:
    first, second = siblings
    a, b = await first.node("a"), await second.node("b")
    second.engine.answer = lambda query: DENY
    use = await a.reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.NO_GRANT
    assert not b.calls


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("place", [0, 1])
async def test_either_worker_cuts_both_ends(
    siblings: tuple[BrokeredPlane, BrokeredPlane], name: str, place: int
) -> None:
    a, b = await siblings[0].node("a"), await siblings[1].node("b")
    use = await a.reach("b")
    plane = siblings[place]
    plane.store.apply(Revocation(1, spiffe(name), "", "key_compromise", plane.clock.now()))
    await settled(lambda: use.cut is not None and b.calls[0].cut is not None)
    await settled(lambda: siblings[0].registry.open_count == 0 == siblings[1].registry.open_count)


async def test_a_claim_that_is_over_leads_nowhere(siblings: tuple[BrokeredPlane, BrokeredPlane]) -> None:
    first, second = siblings
    a, b = await first.node("a"), await second.node("b")
    b.close()
    await settled(lambda: second.broker.open_count == 0)
    use = await a.reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.TARGET_ABSENT


async def test_a_worker_that_lost_the_claim_does_not_answer(siblings: tuple[BrokeredPlane, BrokeredPlane]) -> None:
    first, second = siblings
    a, b = await first.node("a"), await second.node("b")
    second.table.claim(spiffe("b"))  # as somebody newer would, by the same number
    use = await a.reach("b")
    assert use.refusal is not None
    assert use.refusal.reason is Reason.TARGET_ABSENT
    assert not b.calls


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

"""A change of trust finds exactly the exchanges and connections that it touches."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from foundation.identity import IdentityChanged, Revocation, SnapshotNumbers
from foundation.reasons import Reason
from gateway.proxy.identify import Peer
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore, Touched
from gateway.streams.redecide import ASKED_AT_ONCE
from gateway.streams.registry import QUIET_FROM, SEVER_SECONDS, TICK_SECONDS, Cut, Exchange, Registry
from policies.model import FOREVER, Answer, Decision, Denial, Permit, Query, Staleness, judge
from policies.routes import Route, RouteType
from policies.upstreams import Address
from tests.fakes.clock import ManualClock
from tests.fakes.trust import ALLOW, HARDWARE, FakeEngine, record, request, spiffe

NUMBERS = SnapshotNumbers(1, 0, 0, 0)
ROUTE = Route("api", RouteType.HTTP, "*", (), (Address("127.0.0.1", 1),))


class Cuts(list[Reason]):
    """Remembers why something was cut."""

    def __call__(self, reason: Reason) -> None:
        self.append(reason)


def peer(name: str = "edge-1", serial: str = "aa", issuer: str = "ca-1") -> Peer:
    return Peer(spiffe(name), serial, 0.0, FOREVER, b"", issuer)


class IdleConnection:
    def __init__(self, who: Peer) -> None:
        self.peer, self.cuts = who, Cuts()

    def abort(self, reason: Reason) -> None:
        self.cuts(reason)


def permit(deadline: float = FOREVER) -> Permit:
    query = Query(1, record(), HARDWARE, "api", request(), Staleness.FRESH)
    decision = judge("d-1", query, Answer(True, ALLOW.reasons, "g", deadline), FOREVER, NUMBERS)
    assert isinstance(decision, Permit)
    return decision


def denial() -> Denial:
    return Denial("d-2", None, (Reason.NO_GRANT,), NUMBERS)


class Answers:
    """Implements `gateway.streams.redecide.Redecider`: what a test said of each exchange. `slow` asks an engine."""

    def __init__(self) -> None:
        self.of: dict[Exchange, Decision] = {}
        self.slow, self.asked = False, 0

    def again_now(self, exchange: Exchange) -> Decision | None:
        self.asked += not self.slow
        return None if self.slow else self.of[exchange]

    async def again(self, exchange: Exchange) -> Decision:
        self.asked += 1
        await asyncio.sleep(0)
        return self.of[exchange]


class Bench:
    """A registry behind a store, with the decisions it recorded, and the cuts with their times."""

    def __init__(self) -> None:
        self.clock, self.store, self.answers = ManualClock(), SnapshotStore(), Answers()
        self.recorded: list[Cut] = []
        self.timed: list[tuple[Reason, float]] = []
        self.registry = Registry(
            self.clock, self.recorded.append, self.answers, lambda reason, seconds: self.timed.append((reason, seconds))
        )
        self.store.listen(self.registry.changed)

    def open(
        self, name: str, serial: str, answer: Decision, deadline: float = FOREVER, *, issuer: str = "ca-1"
    ) -> tuple[Exchange, Cuts]:
        cuts = Cuts()
        exchange = Exchange(peer(name, serial, issuer), cuts)
        self.registry.register(exchange)
        exchange.permitted(permit(deadline), ROUTE)
        self.answers.of[exchange] = answer
        return exchange, cuts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.registry.run())
        await settle()
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def revoke(name: str = "edge-1", serial: str = "", number: int = 1) -> Revocation:
    return Revocation(number, spiffe(name), serial, "key_compromise", 1.0)


def test_revoking_an_identity_cuts_its_exchanges_and_idle_connections_before_publishing_returns() -> None:
    bench = Bench()
    (_, mine), (_, other) = bench.open("edge-1", "aa", permit()), bench.open("edge-2", "bb", permit())
    idle = IdleConnection(peer())
    bench.registry.connected(idle)
    bench.store.apply(revoke())
    assert mine == [Reason.CUT_BY_REVOCATION]
    assert idle.cuts == [Reason.CUT_BY_REVOCATION]
    assert other == []
    assert bench.registry.open_count == 1


def test_revoking_a_serial_leaves_the_identitys_other_certificate_alone() -> None:
    bench = Bench()
    (_, old), (_, new) = bench.open("edge-1", "aa", permit()), bench.open("edge-1", "bb", permit())
    bench.store.apply(revoke(serial="aa"))
    assert (old, new) == ([Reason.CUT_BY_REVOCATION], [])


async def test_a_change_re_decides_what_it_touches_and_cuts_what_is_denied() -> None:
    bench = Bench()
    (_, denied), (_, kept) = bench.open("edge-1", "aa", denial()), bench.open("edge-1", "aa", permit())
    (_, untouched) = bench.open("edge-2", "bb", denial())
    async with bench.running():
        bench.store.apply(IdentityChanged(1, record("edge-1", epoch=2)))
        await settle()
    assert (denied, kept, untouched) == ([Reason.CUT_BY_CHANGE], [], [])
    assert [(type(each.because), each.reason) for each in bench.recorded] == [(Denial, Reason.CUT_BY_CHANGE)]


async def test_a_deadline_cuts_unless_it_was_moved() -> None:
    bench = Bench()
    now = bench.clock.now()
    (_, over), (_, moved) = (
        bench.open("edge-1", "aa", denial(), now + 10),
        bench.open("edge-2", "bb", permit(now + 100), now + 10),
    )
    async with bench.running():
        for _ in range(2):
            bench.clock.advance(TICK_SECONDS)
            await settle()
        assert (over, moved) == ([], [])
        bench.clock.advance(10)
        await settle()
        assert (over, moved) == ([Reason.CUT_BY_DEADLINE], [])
        bench.clock.advance(89)
        await settle()
        assert moved == []
        bench.clock.advance(2)
        await settle()
    assert bench.registry.open_count == 1


def test_the_deadlines_of_what_is_over_are_not_kept() -> None:
    """But for some, so that a deadline costs a look-up and no search."""
    bench = Bench()
    for number in range(5_000):
        exchange = Exchange(peer(f"edge-{number}"), Cuts())
        bench.registry.register(exchange)
        exchange.permitted(permit(bench.clock.now() + 10_000), ROUTE)
        bench.registry.expire()
        bench.registry.leave(exchange)
    assert sum(type(each) is Exchange for each in gc.get_objects()) <= 600


def test_a_change_marks_an_exchange_that_is_still_being_decided() -> None:
    bench = Bench()
    exchange = Exchange(peer(), Cuts())
    bench.registry.register(exchange)
    bench.store.apply(IdentityChanged(1, record(epoch=2)))
    assert exchange.generation == 1


def test_an_exchange_that_left_is_never_cut() -> None:
    bench = Bench()
    exchange, cuts = bench.open("edge-1", "aa", permit())
    bench.registry.leave(exchange)
    bench.registry.leave(exchange)
    bench.store.apply(revoke())
    assert cuts == []
    assert bench.registry.open_count == 0


@pytest.mark.parametrize("settled", [False, True])
async def test_what_is_withdrawn_is_found_young_and_old(settled: bool) -> None:
    withdrawals = {
        "identity": Touched(identities=frozenset({spiffe("edge-1")})),
        "serial": Touched(serials=frozenset({"aa"})),
        "issuer": Touched(issuers=frozenset({"ca-1"})),
    }
    for kind, touched in withdrawals.items():
        bench = Bench()
        (_, mine) = bench.open("edge-1", "aa", denial())
        (_, other) = bench.open("edge-2", "bb", permit(), issuer="ca-2")
        idle, idle_other = IdleConnection(peer()), IdleConnection(peer("edge-2", "bb", "ca-2"))
        bench.registry.connected(idle)
        bench.registry.connected(idle_other)
        if settled:
            bench.registry.expire()
        revoked = SnapshotStore()
        revoked.apply(revoke())
        bench.registry.changed(revoked.current, touched)
        assert (mine, idle.cuts) == ([Reason.CUT_BY_REVOCATION], [Reason.CUT_BY_REVOCATION]), kind
        assert (other, idle_other.cuts) == ([], []), kind
        async with bench.running():
            pass
        assert [(type(each.because), each.permit) for each in bench.recorded] == [(Denial, "d-1")], kind


def test_a_disconnected_connection_is_not_found() -> None:
    bench = Bench()
    idle = IdleConnection(peer())
    bench.registry.connected(idle)
    assert bench.registry.connections_of(spiffe("edge-1")) == 1
    bench.registry.disconnected(idle)
    bench.store.apply(revoke())
    assert idle.cuts == []
    assert bench.registry.connections_of(spiffe("edge-1")) == 0


def test_nothing_is_left_of_what_left() -> None:
    bench = Bench()
    exchanges = [bench.open(f"edge-{i}", f"{i:02x}", permit())[0] for i in range(4)]
    bench.registry.expire()
    bench.registry.dialled(exchanges[0], "elsewhere")
    assert bench.registry.open_by_route() == {"api": 4}
    for exchange in exchanges:
        bench.registry.leave(exchange)
    registry = bench.registry
    indexes = (registry._by_identity, registry._by_serial, registry._by_issuer, registry._by_route)
    assert [list(index.sizes()) for index in (*indexes, registry._by_upstream)] == [[]] * 5
    assert registry.open_count == 0


@pytest.mark.parametrize("slow", [False, True])
async def test_each_exchange_is_decided_again_once_however_many_changes_touch_it(slow: bool) -> None:
    bench = Bench()
    bench.answers.slow = slow
    count = 3 * ASKED_AT_ONCE
    cuts = [bench.open("edge-1", "aa", denial() if i % 2 else permit())[1] for i in range(count)]
    async with bench.running():
        bench.store.apply(IdentityChanged(1, record("edge-1", epoch=2)))
        bench.store.apply(IdentityChanged(2, record("edge-1", epoch=3)))
        for _ in range(20):
            await settle()
    assert bench.answers.asked == count
    assert cuts == [[Reason.CUT_BY_CHANGE] if i % 2 else [] for i in range(count)]


async def test_a_new_revision_asks_about_everything_when_nobody_knows_what_it_changed() -> None:
    bench = Bench()
    (_, cut), (_, kept) = bench.open("edge-1", "aa", denial()), bench.open("edge-2", "bb", permit())
    bench.registry.expire()
    undecided = Exchange(peer(), Cuts())
    bench.registry.register(undecided)
    async with bench.running():
        part = PolicyPart(2, "two", FakeEngine(), RouteTable(()), published_at=bench.clock.now() - 3)
        bench.store.publish_policy(part)
        assert undecided.generation == 1
        await settle()
    assert (cut, kept) == ([Reason.CUT_BY_CHANGE], [])
    assert bench.timed == [(Reason.CUT_BY_CHANGE, 3.0)]


async def test_a_deadline_that_an_answer_names_again_is_not_forgotten() -> None:
    """A decision at the very deadline may permit until the same one."""
    bench = Bench()
    now = bench.clock.now()
    exchange, cuts = bench.open("edge-1", "aa", permit(now + 10), now + 10)
    async with bench.running():
        bench.clock.advance(10.0)
        await settle()
        bench.clock.advance(TICK_SECONDS)
        await settle()
        assert cuts == []
        bench.answers.of[exchange] = denial()
        bench.clock.advance(TICK_SECONDS)
        await settle()
    assert cuts == [Reason.CUT_BY_DEADLINE]


class Sluggish(ManualClock):
    """Time passes while one looks at it."""

    def monotonic(self) -> float:
        self._monotonic += SEVER_SECONDS
        return super().monotonic()


async def test_what_is_too_much_for_one_call_is_cut_in_the_turns_that_follow() -> None:
    bench = Bench()
    cuts = [bench.open("edge-1", "aa", denial())[1] for _ in range(50)]
    bench.registry._clock = Sluggish()
    bench.store.apply(revoke())
    assert 0 < sum(map(len, cuts)) < 50
    assert all(exchange.generation for exchange in bench.answers.of)  # none is decided as if nothing had happened
    async with bench.running():
        for _ in range(50):
            await settle()
    assert cuts == [[Reason.CUT_BY_REVOCATION]] * 50
    assert len(bench.recorded) == 50


@pytest.mark.parametrize("count", [1, 500])
def test_a_revocation_touches_only_its_own(count: int) -> None:
    bench = Bench()
    others = [bench.open(f"other-{i}", f"{i:04x}", permit())[1] for i in range(count)]
    bench.store.apply(revoke("edge-1"))
    assert not any(others)


async def test_the_garbage_collector_waits_for_many_cuts_and_comes_back() -> None:
    bench = Bench()
    cuts = [bench.open("edge-1", "aa", denial())[1] for _ in range(QUIET_FROM)]
    few = [bench.open("edge-2", "bb", denial())[1] for _ in range(QUIET_FROM - 1)]
    assert gc.isenabled()
    async with bench.running():
        bench.store.apply(revoke("edge-2"))
        assert all(few)
        assert gc.isenabled()
        bench.store.apply(revoke("edge-1", number=2))
        assert all(cuts)
        assert not gc.isenabled()
    assert gc.isenabled()


async def test_what_somebody_else_keeps_away_stays_away() -> None:
    bench = Bench()
    for _ in range(QUIET_FROM):
        bench.open("edge-1", "aa", denial())
    gc.disable()
    try:
        async with bench.running():
            bench.store.apply(revoke())
        assert not gc.isenabled()
    finally:
        gc.enable()

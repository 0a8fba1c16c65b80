"""A change of trust finds exactly the exchanges and connections that it touches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from foundation.identifiers import SpiffeId
from foundation.identity import IdentityChanged, Revocation, SnapshotNumbers
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from gateway.streams.registry import TICK_SECONDS, Exchange, Registry
from policies.model import FOREVER, Answer, Decision, Denial, Permit, Query, Staleness, judge
from tests.fakes.clock import ManualClock
from tests.fakes.trust import ALLOW, HARDWARE, record, request, spiffe

NUMBERS = SnapshotNumbers(1, 0, 0, 0)


class Cuts(list[Reason]):
    """Remembers why something was cut."""

    def __call__(self, reason: Reason) -> None:
        self.append(reason)


class IdleConnection:
    def __init__(self, identity: SpiffeId, serial: str) -> None:
        self.identity, self.serial, self.cuts = identity, serial, Cuts()

    def abort(self, reason: Reason) -> None:
        self.cuts(reason)


def permit(deadline: float = FOREVER) -> Permit:
    query = Query(1, record(), HARDWARE, "api", request(), Staleness.FRESH)
    decision = judge("d-1", query, Answer(True, ALLOW.reasons, "g", deadline), FOREVER, NUMBERS)
    assert isinstance(decision, Permit)
    return decision


def denial() -> Denial:
    return Denial("d-2", None, (Reason.NO_GRANT,), NUMBERS)


class Bench:
    """A registry behind a store, with the decisions it recorded."""

    def __init__(self) -> None:
        self.clock, self.store = ManualClock(), SnapshotStore()
        self.recorded: list[Decision] = []
        self.registry = Registry(self.clock, self.recorded.append)
        self.store.listen(self.registry.changed)

    def open(self, name: str, serial: str, answer: Decision, deadline: float = FOREVER) -> tuple[Exchange, Cuts]:
        cuts = Cuts()
        exchange = Exchange(spiffe(name), serial, cuts)
        self.registry.register(exchange)

        async def redecide() -> Decision:
            return answer

        exchange.permitted(permit(deadline), redecide)
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
    idle = IdleConnection(spiffe("edge-1"), "aa")
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
    assert [type(each) for each in bench.recorded] == [Denial]


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


def test_a_change_marks_an_exchange_that_is_still_being_decided() -> None:
    bench = Bench()
    exchange = Exchange(spiffe(), "aa", Cuts())
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


@pytest.mark.parametrize("count", [1, 500])
def test_a_revocation_touches_only_its_own(count: int) -> None:
    bench = Bench()
    others = [bench.open(f"other-{i}", f"{i:04x}", permit())[1] for i in range(count)]
    bench.store.apply(revoke("edge-1"))
    assert not any(others)

"""Which gateways hold a node's tunnel: what others find while processes claim, release, stop, die and forget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.hotstate import HotStateSettings, MemoryHotState, Swap
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from gateway.broker.presence import ALIVE_SECONDS, BATCH, BEAT_SECONDS, ENTRY_SECONDS, Presence
from gateway.broker.siblings import GROUP, Owner, SiblingTable
from tests.fakes.clock import ManualClock

NODES = [SpiffeId("fleet.example", Kind.NODE, f"n{number}") for number in range(3)]
GATEWAYS = [SpiffeId("fleet.example", Kind.GATEWAY, f"gw{number}") for number in range(2)]
WORKERS = 4  # two of each gateway


class Shared(MemoryHotState):
    """Hot state of several gateways: each call lets others go before it, and it may be gone for a while."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(HotStateSettings(), clock)
        self.is_there = True
        self.calls = 0

    async def swap(self, swaps: Sequence[Swap], ttl: float) -> list[bool]:
        await self._reach()
        return await super().swap(swaps, ttl)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        await self._reach()
        return await super().get_many(keys)

    async def get(self, key: str) -> bytes | None:
        await self._reach()
        return await super().get(key)

    async def forget(self) -> None:
        """All of it, as FLUSHALL does."""
        await self.close()

    async def _reach(self) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if not self.is_there:
            raise Fault(Reason.HOT_STATE_UNAVAILABLE)


@dataclass
class Worker:
    """One process with its part of the gateway's table."""

    gateway: SpiffeId
    number: int
    table: SiblingTable
    presence: Presence
    held: dict[SpiffeId, int] = field(default_factory=dict)
    beaten: float = float("-inf")  # no beat came later


class Cluster:
    """Two gateways of two workers each, and a time that the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hot = Shared(self.clock)
        self.tables = [SiblingTable.private(places=GROUP) for _ in GATEWAYS]
        self.ever: dict[str, Worker] = {}
        self.workers = [self.start(number) for number in range(WORKERS)]

    def start(self, number: int) -> Worker:
        gateway = number % len(GATEWAYS)
        table = SiblingTable(self.tables[gateway]._memory, number)
        presence = Presence(self.hot, self.clock, GATEWAYS[gateway], f"gw{gateway}.example:7443")
        worker = self.ever[presence.incarnation] = Worker(GATEWAYS[gateway], number, table, presence)
        return worker

    def claim(self, worker: Worker, node: SpiffeId) -> None:
        worker.held[node] = worker.table.claim(node)
        worker.presence.claim(node, worker.held[node])

    def release(self, worker: Worker, node: SpiffeId) -> None:
        epoch = worker.held.pop(node, None)
        if epoch is not None:
            worker.table.release(node, epoch)
            worker.presence.release(node, epoch)

    def kill(self, worker: Worker) -> None:
        worker.table.clear(worker.number)
        self.workers[worker.number] = self.start(worker.number)

    async def step(self, *workers: Worker) -> None:
        await asyncio.gather(*(worker.presence.step() for worker in workers))
        for worker in workers:
            worker.beaten = self.clock.monotonic() if self.hot.is_there else worker.beaten

    async def settle(self) -> None:
        """Everybody beats and tells, until all is told."""
        for _ in range(4):
            self.clock.advance(BEAT_SECONDS)
            for _ in range(3):
                await self.step(*self.workers)

    async def check(self, asking: Worker) -> None:
        for node in NODES:
            found = await asking.presence.find(node)
            gateways = [claim.gateway for claim in found]
            assert len(set(gateways)) == len(gateways)
            assert asking.gateway not in gateways[1:]
            for claim in found:
                assert self.clock.monotonic() - self.ever[claim.incarnation].beaten < ALIVE_SECONDS

    async def check_settled(self) -> None:
        for node in NODES:
            expected = {}
            for worker in self.workers:
                epoch = worker.held.get(node)
                if epoch is not None and epoch > expected.get(worker.gateway, ("", 0))[1]:
                    expected[worker.gateway] = (worker.presence.incarnation, epoch)
            for gateway, table in zip(GATEWAYS, self.tables, strict=True):
                owner = table.owner(node)
                if owner is not None:
                    assert expected[gateway] == (self.workers[owner.worker].presence.incarnation, owner.epoch)
            for asking in self.workers:
                found = await asking.presence.find(node)
                assert {claim.gateway: (claim.incarnation, claim.epoch) for claim in found} == expected


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "release", "step", "step", "all", "kill", "wait", "pause", "flush", "away"]),
        st.integers(0, WORKERS - 1),
        st.sampled_from(NODES),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(ACTS)
def test_only_living_claims_are_found_and_in_the_end_exactly_those(acts: list[tuple[str, int, SpiffeId]]) -> None:
    asyncio.run(play(acts))


async def play(acts: list[tuple[str, int, SpiffeId]]) -> None:
    cluster = Cluster()
    for act, number, node in acts:
        await do(cluster, act, cluster.workers[number], node)
        if cluster.hot.is_there:
            await cluster.check(cluster.workers[number])
    cluster.hot.is_there = True
    cluster.clock.advance(ALIVE_SECONDS + 1)  # those that were killed are gone
    await cluster.settle()
    await cluster.check_settled()


async def do(cluster: Cluster, act: str, worker: Worker, node: SpiffeId) -> None:
    match act:
        case "claim":
            cluster.claim(worker, node)
        case "release":
            cluster.release(worker, node)
        case "step":
            await cluster.step(worker)
        case "all":
            await cluster.step(*cluster.workers)
        case "kill":
            cluster.kill(worker)
        case "wait":
            cluster.clock.advance(BEAT_SECONDS)
        case "pause":
            cluster.clock.advance(ALIVE_SECONDS + 1)
        case "flush":
            await cluster.hot.forget()
        case "away":
            cluster.hot.is_there = not cluster.hot.is_there


async def test_what_was_released_is_not_found_once_that_is_told() -> None:
    cluster = Cluster()
    one, other = cluster.workers[:2]
    cluster.claim(one, NODES[0])
    await cluster.step(one, other)
    [claim] = await other.presence.find(NODES[0])
    assert (claim.gateway, claim.relay) == (GATEWAYS[0], "gw0.example:7443")
    cluster.release(one, NODES[0])
    await cluster.step(one)
    assert await other.presence.find(NODES[0]) == ()
    assert await cluster.hot.get(f"tunnel/{NODES[0]}") is None


async def test_a_node_with_tunnels_to_two_gateways_is_found_at_both_the_own_first() -> None:
    cluster = Cluster()
    for worker in cluster.workers[:2]:
        cluster.claim(worker, NODES[0])
    await cluster.settle()
    for worker in cluster.workers[:2]:
        found = await worker.presence.find(NODES[0])
        assert found[0].gateway == worker.gateway
        assert len(found) == 2


async def test_a_killed_process_is_found_nowhere_though_its_entries_are_there() -> None:
    cluster = Cluster()
    one, other = cluster.workers[:2]
    cluster.claim(one, NODES[0])
    await cluster.step(one, other)
    cluster.clock.advance(ALIVE_SECONDS - 0.1)
    await cluster.step(other)
    assert len(await other.presence.find(NODES[0])) == 1
    cluster.clock.advance(0.2)
    assert await other.presence.find(NODES[0]) == ()
    assert await cluster.hot.get(f"tunnel/{NODES[0]}") is not None


async def test_an_older_claim_of_the_same_gateway_does_not_overwrite_the_newer() -> None:
    cluster = Cluster()
    older, newer = cluster.workers[0], cluster.workers[2]
    cluster.claim(older, NODES[0])
    cluster.claim(newer, NODES[0])
    await cluster.step(newer)
    await cluster.step(older)  # told late
    await cluster.settle()
    [claim] = await older.presence.find(NODES[0])
    assert Owner(newer.number, claim.epoch) == cluster.tables[0].owner(NODES[0])
    cluster.release(older, NODES[0])
    await cluster.settle()
    assert [claim] == list(await older.presence.find(NODES[0]))


async def test_a_gateway_that_lost_its_table_is_found_once_its_former_process_counts_as_gone() -> None:
    cluster = Cluster()
    before = cluster.workers[0]
    before.presence.claim(NODES[0], 1000)
    await cluster.step(before)
    cluster.tables[0] = SiblingTable.private(places=GROUP)
    cluster.workers[0] = after = cluster.start(0)
    cluster.claim(after, NODES[0])
    await cluster.step(after)
    assert [claim.epoch for claim in await after.presence.find(NODES[0])] == [1000]
    for _ in range(int(ALIVE_SECONDS / BEAT_SECONDS) + 1):
        cluster.clock.advance(BEAT_SECONDS)
        await cluster.step(after)
    [claim] = await cluster.workers[1].presence.find(NODES[0])
    assert claim.incarnation == after.presence.incarnation


async def test_without_hot_state_nothing_is_found_and_afterwards_all_is_told_again() -> None:
    cluster = Cluster()
    one, other = cluster.workers[:2]
    cluster.claim(one, NODES[0])
    cluster.hot.is_there = False
    await cluster.step(one, other)
    cluster.claim(one, NODES[1])
    with pytest.raises(Fault) as caught:
        await other.presence.find(NODES[0])
    assert caught.value.reason is Reason.HOT_STATE_UNAVAILABLE
    cluster.hot.is_there = True
    await cluster.hot.forget()
    await cluster.settle()
    assert [len(await other.presence.find(node)) for node in NODES] == [1, 1, 0]


async def test_entries_are_refreshed_before_they_end() -> None:
    cluster = Cluster()
    one = cluster.workers[0]
    cluster.claim(one, NODES[0])
    for _ in range(int(ENTRY_SECONDS / BEAT_SECONDS) + 10):
        cluster.clock.advance(BEAT_SECONDS)
        await cluster.step(one)
    assert len(await one.presence.find(NODES[0])) == 1


async def test_a_claim_that_was_replaced_is_not_released_with_the_former() -> None:
    cluster = Cluster()
    presence = cluster.workers[0].presence
    presence.claim(NODES[0], 1)
    presence.claim(NODES[0], 2)
    presence.release(NODES[0], 1)
    await cluster.settle()
    assert [claim.epoch for claim in await presence.find(NODES[0])] == [2]


async def test_what_changes_while_it_is_told_is_told_again() -> None:
    cluster = Cluster()
    one = cluster.workers[0]
    await cluster.step(one)
    cluster.claim(one, NODES[0])
    telling = asyncio.ensure_future(one.presence.step())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cluster.release(one, NODES[0])
    await telling
    await cluster.step(one)
    assert await one.presence.find(NODES[0]) == ()


async def test_many_tunnels_cost_few_round_trips_and_a_heartbeat_costs_one_entry() -> None:
    cluster = Cluster()
    one = cluster.workers[0]
    nodes = [SpiffeId("fleet.example", Kind.NODE, f"m{number}") for number in range(2000)]
    for number, node in enumerate(nodes):
        one.presence.claim(node, number + 1)
    while one.presence._untold:
        await cluster.step(one)
    assert cluster.hot.calls <= 3 * (len(nodes) // BATCH + 1) + 1
    cluster.hot.calls = 0
    cluster.clock.advance(BEAT_SECONDS)
    await cluster.step(one)
    assert cluster.hot.calls == 1
    for node in nodes:
        assert len(await one.presence.find(node)) == 1


async def test_a_process_that_stops_is_gone_at_once_and_one_that_runs_tells_when_told() -> None:
    cluster = Cluster()
    one, other = cluster.workers[:2]
    running: asyncio.Task[Any] = asyncio.ensure_future(one.presence.run())
    await cluster.step(other)
    cluster.claim(one, NODES[0])
    while not await other.presence.find(NODES[0]):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await other.presence.find(NODES[0]) == ()

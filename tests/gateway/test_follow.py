"""Changes reach the snapshot in order; a bad revision changes nothing; a broken feed is taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from foundation.faults import Fault
from foundation.identity import Change, Heartbeat, IdentityChanged, PolicyPublished, SnapshotNumbers
from foundation.ports import AuditEvent
from foundation.reasons import Reason
from gateway.follow import RETRY_FIRST, Follower
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore
from tests.fakes.clock import ManualClock
from tests.fakes.trust import FakeEngine, record, spiffe


class ScriptedFeed:
    """Each follow plays one script; after the last it stays silent."""

    def __init__(self, *scripts: list[Change | Exception]) -> None:
        self.scripts = list(scripts)
        self.since: list[SnapshotNumbers | None] = []

    @asynccontextmanager
    async def follow(self, since: SnapshotNumbers | None) -> AsyncIterator[AsyncIterator[Change]]:
        self.since.append(since)

        async def play() -> AsyncIterator[Change]:
            for step in self.scripts.pop(0) if self.scripts else []:
                if isinstance(step, Exception):
                    raise step
                yield step
            await asyncio.Event().wait()

        yield play()


class Audit(list[AuditEvent]):
    async def append(self, event: AuditEvent) -> int:  # type: ignore[override]  # the port's append, kept in a list
        super().append(event)
        return len(self)


async def load(change: PolicyPublished) -> PolicyPart:
    if change.bundle == b"bad":
        raise Fault(Reason.REVISION_SIGNATURE)
    return PolicyPart(change.revision, f"digest-{change.revision}", FakeEngine(), RouteTable(()))


class AwayAtFirst:
    """A policy server that is away for the first loads of revision 2."""

    def __init__(self, loads: int) -> None:
        self.loads = loads

    async def __call__(self, change: PolicyPublished) -> PolicyPart:
        if change.revision == 2 and self.loads:
            self.loads -= 1
            raise Fault(Reason.ENGINE_UNREACHABLE)
        return await load(change)


async def follow(feed: ScriptedFeed, clock: ManualClock, turns: int = 1) -> tuple[SnapshotStore, Audit, Follower]:
    store, audit = SnapshotStore(), Audit()
    follower = Follower(feed, store, load, audit, clock)
    task = asyncio.create_task(follower.run())
    for _ in range(turns):
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(RETRY_FIRST * 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return store, audit, follower


def heartbeat(at: float, inventory: int) -> Heartbeat:
    return Heartbeat(at, SnapshotNumbers(1, 0, 0, inventory))


async def test_facts_and_policy_arrive() -> None:
    feed = ScriptedFeed([PolicyPublished(1, b"ok"), IdentityChanged(7, record()), heartbeat(5.0, 7)])
    store, audit, follower = await follow(feed, ManualClock())
    assert store.current.numbers == SnapshotNumbers(1, 0, 0, 7)
    assert store.current.inventory[spiffe()] == record()
    assert store.heartbeat_at == 5.0
    assert follower.caught_up.is_set()
    assert [event.kind for event in audit] == ["policy.enforced"]


async def test_a_refused_revision_leaves_the_one_before_in_force() -> None:
    feed = ScriptedFeed([PolicyPublished(1, b"ok"), PolicyPublished(2, b"bad"), heartbeat(5.0, 0)])
    store, audit, _ = await follow(feed, ManualClock())
    assert store.current.numbers.policy == 1
    assert [(event.kind, event.reason) for event in audit][1] == ("policy.refused", "revision_signature")


async def test_an_older_revision_is_not_taken_up() -> None:
    feed = ScriptedFeed([PolicyPublished(2, b"ok"), PolicyPublished(1, b"ok")])
    store, _, _ = await follow(feed, ManualClock())
    assert store.current.numbers.policy == 2


async def test_a_broken_feed_is_continued_from_the_last_heartbeat() -> None:
    feed = ScriptedFeed(
        [PolicyPublished(1, b"ok"), heartbeat(5.0, 3), OSError("reset")],
        [IdentityChanged(4, record()), heartbeat(6.0, 4)],
    )
    store, _, _ = await follow(feed, ManualClock(), turns=2)
    assert feed.since[:2] == [None, SnapshotNumbers(1, 0, 0, 3)]
    assert store.heartbeat_at == 6.0


async def test_a_revision_whose_policy_server_was_away_is_enforced_with_a_later_heartbeat() -> None:
    beats = [heartbeat(float(number), 0) for number in range(4)]
    feed = ScriptedFeed([PolicyPublished(1, b"one"), PolicyPublished(2, b"two"), *beats])
    store, audit = SnapshotStore(), Audit()
    follower = Follower(feed, store, AwayAtFirst(3), audit, ManualClock())
    task = asyncio.create_task(follower.run())
    for _ in range(40):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.current.numbers.policy == 2
    assert [(event.kind, event.subject) for event in audit] == [
        ("policy.enforced", "revision/1"),
        ("policy.refused", "revision/2"),
        ("policy.enforced", "revision/2"),
    ]


class KilledAtOnce:
    """The followers and what is kept. Whoever is told a change may be the last that this process does."""

    def __init__(self) -> None:
        self.kept: list[Change] = []
        self.in_force: list[tuple[object, bool]] = []

    def recall(self) -> tuple[Change, ...]:
        return ()

    def keep(self, change: Change) -> None:
        self.kept.append(change)

    def apply(self, change: Change) -> None:
        self.in_force.append((change, change in self.kept))

    async def keep_up(self) -> None:
        pass

    def enforce(self, revision: int) -> None:
        revisions = [each.revision for each in self.kept if isinstance(each, PolicyPublished)]
        self.in_force.append((revision, revision in revisions))


async def test_nothing_is_in_force_anywhere_before_it_is_kept() -> None:
    changed, beat = IdentityChanged(7, record()), heartbeat(5.0, 7)
    feed, both = ScriptedFeed([PolicyPublished(1, b"ok"), PolicyPublished(2, b"bad"), changed, beat]), KilledAtOnce()
    follower = Follower(feed, SnapshotStore(), load, Audit(), ManualClock(), both, both)
    task = asyncio.create_task(follower.run())
    await follower.caught_up.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert both.in_force == [(1, True), (changed, True), (beat, True)]
    assert both.kept == [PolicyPublished(1, b"ok"), changed, beat]

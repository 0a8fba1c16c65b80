"""Follows an authority's changes into the snapshot, wherever the authority runs.

Laws held here:
- a policy revision is enforced only when its signature verifies and its number is above the floor; one that does not
  load leaves the revision before in force, and the refusal is on the audit log;
- the floor is on disk before the revision is enforced, so that a restart cannot take an older one;
- a revision that did not load because its policy server was away is enforced once that is back;
- what is kept is kept before it is in force anywhere: a gateway that is killed forgets nothing that it enforced;
- a broken feed ages the facts (`policies.staleness`); it never removes them, and it never adds one;
- what was kept from before a restart goes through the same hands as what the authority sends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identity import Change, Heartbeat, PolicyPublished, SnapshotNumbers
from foundation.ports import AuditEvent, AuditLog, ChangeFeed
from foundation.reasons import Reason
from gateway.snapshot import PolicyPart, SnapshotStore

RETRY_FIRST, RETRY_LAST = 0.2, 5.0
# A policy server that is away, or has just begun.
_MAY_PASS = frozenset({Reason.ENGINE_UNREACHABLE, Reason.ENGINE_TIMEOUT, Reason.ENGINE_FAILED})
_LOG = logging.getLogger(__name__)

# Verifies, raises the floor on disk and loads a published bundle. Raises `Fault` with the reason of the refusal.
LoadPolicy = Callable[[PolicyPublished], Awaitable[PolicyPart]]


class Kept(Protocol):
    """Where changes outlive this process (`gateway.keep`)."""

    def recall(self) -> tuple[Change, ...]: ...

    def keep(self, change: Change) -> None: ...


class Followers(Protocol):
    """Who else applies the same changes in the same order (`gateway.orders`)."""

    def apply(self, change: Change) -> None:
        """Tell `change`, before it is in force here."""
        ...

    async def keep_up(self) -> None:
        """Wait for who has much to read still."""
        ...

    def enforce(self, revision: int) -> None:
        """The revision that was loaded last is in force from now on."""
        ...


class Alone:
    """Nobody else."""

    def apply(self, change: Change) -> None:
        pass

    async def keep_up(self) -> None:
        pass

    def enforce(self, revision: int) -> None:
        pass


class Follower:
    """Applies changes in order until cancelled. `caught_up` is set once facts and policy are whole."""

    def __init__(
        self,
        feed: ChangeFeed,
        store: SnapshotStore,
        load: LoadPolicy,
        audit: AuditLog,
        clock: Clock,
        kept: Kept | None = None,
        others: Followers | None = None,
    ) -> None:
        self._feed = feed
        self._others = others or Alone()
        self._store = store
        self._load = load
        self._audit = audit
        self._clock = clock
        self._kept = kept
        self._numbers: SnapshotNumbers | None = None
        self._put_off: PolicyPublished | None = None
        self.caught_up = asyncio.Event()

    @property
    def waits_for(self) -> str:
        """What is missing before this process can decide; empty when nothing is."""
        if not self.caught_up.is_set():
            return "the authority's facts"
        return "" if self._store.current.policy is not None else "a policy revision"

    async def run(self) -> None:
        """Follow; on any break, wait a growing and jittered time and continue from the last number."""
        await self._recall()
        wait = RETRY_FIRST
        while True:
            try:
                async with self._feed.follow(self._since()) as changes:
                    async for change in changes:
                        await self._take(change)
                        wait = RETRY_FIRST
            except (Fault, OSError) as error:
                _LOG.warning("the authority's feed broke: %s", error)
            await self._clock.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
            wait = min(wait * 2, RETRY_LAST)

    def _since(self) -> SnapshotNumbers | None:
        """Where to go on: at the last heartbeat, but with policy at what is enforced, so that a revision which did not
        load is tried again."""
        enforced = self._store.current.policy
        return self._numbers and self._numbers._replace(policy=enforced.revision if enforced else 0)

    async def _recall(self) -> None:
        """Begin with what was known before."""
        if self._kept is None:
            return
        try:
            known = await asyncio.to_thread(self._kept.recall)
        except Fault as fault:
            _LOG.error("what was known before the restart is of no use: %s", fault)
            await self._audit.append(AuditEvent("facts.discarded", "gateway", "facts", fault.reason.code))
            return
        for change in known:
            await self._apply(change)

    async def _take(self, change: Change) -> None:
        if self._kept is not None and not isinstance(change, PolicyPublished):
            self._kept.keep(change)
        await self._apply(change)

    async def _apply(self, change: Change) -> None:
        if isinstance(change, PolicyPublished):
            await self._publish(change)
            return
        self._others.apply(change)
        self._store.apply(change)
        await self._others.keep_up()
        if isinstance(change, Heartbeat):
            self._numbers = change.numbers
            if self._put_off is not None:
                await self._publish(self._put_off)
            self.caught_up.set()

    async def _publish(self, change: PolicyPublished) -> None:
        before = self._store.current.policy
        if before is not None and change.revision <= before.revision:
            return
        try:
            part = await self._load(change)
        except Fault as fault:
            await self._refuse(change, fault)
            return
        self._put_off = None
        if self._kept is not None:
            self._kept.keep(change)
        await self._audit.append(
            AuditEvent("policy.enforced", "gateway", f"revision/{part.revision}", detail={"digest": part.digest})
        )
        self._others.enforce(part.revision)
        self._store.publish_policy(part)
        await self._others.keep_up()
        if before is not None:
            await before.engine.close()

    async def _refuse(self, change: PolicyPublished, fault: Fault) -> None:
        """Leave the revision before in force. What may pass by itself is tried again with each heartbeat, and audited
        once."""
        tried_before = self._put_off is change
        self._put_off = change if fault.reason in _MAY_PASS else None
        if tried_before and self._put_off is change:
            return
        _LOG.error("revision %d is refused: %s", change.revision, fault)
        refused = AuditEvent("policy.refused", "gateway", f"revision/{change.revision}", fault.reason.code)
        await self._audit.append(refused)

"""The authority's numbered changes, as gateways follow them: `foundation.ports.ChangeFeed` over the tables.

A follower is a cursor, one number for each part, and reads what lies behind it: first what it missed, then, woken by
each commit, what is new. Nothing is queued for it, so that a slow one costs no memory and loses nothing: it reads
later, and an identity that changed twice meanwhile is read once. Changes that another process committed are found by
looking at the numbers every `poll` seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, bindparam, or_, select

from foundation.clock import Clock
from foundation.first import first_of
from foundation.identifiers import SpiffeId
from foundation.identity import (
    Change,
    Heartbeat,
    IdentityChanged,
    PolicyPublished,
    PostureChanged,
    Renewal,
    Revocation,
    SnapshotNumbers,
)
from foundation.storage.connection import Connection
from foundation.storage.database import Database
from foundation.storage.statement import Statement
from pki.books import Part, read_numbers
from pki.entries import posture_of, record_of
from pki.revocation import LIFTED_SERIAL, revocation_of
from pki.tables import identities, policies, revocations

HEARTBEAT_SECONDS = 2.0  # followers may rely on five; one heartbeat may be late
POLL_SECONDS = 0.25
PAGE = 500
RESTORE_SHIFT = 40  # numbers of one restore of a backup and the next are this many bits apart


# Made once: building a statement costs as much as running it.
# A moved deadline has no number of its own outside this process, so that who begins here gets all of them.
_POSTURES = Statement(
    select(identities)
    .where(identities.c.deadline_number > bindparam("behind"))
    .order_by(identities.c.deadline_number)
    .limit(bindparam("page"))
)
_INVENTORY = Statement(
    select(identities)
    .where(identities.c.inventory_number > bindparam("behind"))
    .order_by(identities.c.inventory_number)
    .limit(bindparam("page"))
)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a follower has read."""

    policy: int = 0
    revocations: int = 0
    postures: int = 0
    inventory: int = 0
    deadlines: int = 0

    @property
    def numbers(self) -> SnapshotNumbers:
        return SnapshotNumbers(self.policy, self.revocations, self.postures, self.inventory)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some changes and the cursor behind them; `complete` when nothing was left over."""

    changes: tuple[Change, ...]
    cursor: Cursor
    complete: bool


class Feed:
    """Implements `foundation.ports.ChangeFeed`."""

    def __init__(self, database: Database, clock: Clock, *, poll: float = POLL_SECONDS) -> None:
        self._database = database
        self._clock = clock
        self._poll = poll
        self._news = asyncio.Event()

    def announce(self) -> None:
        """Something was committed: wake every follower."""
        self._news.set()
        self._news = asyncio.Event()

    async def numbers(self) -> SnapshotNumbers:
        """The latest numbers."""
        async with self._database.reading() as connection:
            return (await _latest(connection)).numbers

    def follow(self, since: SnapshotNumbers | None) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """See `foundation.ports.ChangeFeed.follow`."""
        return aclosing(self._changes(since))

    async def _changes(self, since: SnapshotNumbers | None) -> AsyncGenerator[Change, None]:
        cursor, fresh = await self._start(since)
        beat_at: float | None = None
        while True:
            news = self._news  # taken before reading: what is committed during the reading wakes us
            batch = await self._read(cursor, fresh)
            for change in batch.changes:
                yield change
            cursor = batch.cursor
            if not batch.complete:
                continue
            fresh = False
            now = self._clock.monotonic()
            if beat_at is None or now >= beat_at:
                yield Heartbeat(self._clock.now(), cursor.numbers)
                beat_at = now + HEARTBEAT_SECONDS
            await self._wait(news, min(self._poll, beat_at - now))

    async def _start(self, since: SnapshotNumbers | None) -> tuple[Cursor, bool]:
        """Where to begin, and whether that is the beginning."""
        async with self._database.reading() as connection:
            latest = await _latest(connection)
        if since is None or not _continues(since, latest.numbers):
            return Cursor(), True
        return Cursor(*since), False

    async def _read(self, cursor: Cursor, fresh: bool) -> Batch:
        async with self._database.reading() as connection:
            latest = await _latest(connection)
            if latest == cursor:
                return Batch((), cursor, True)
            return await _read_after(connection, cursor, latest, self._clock.now() if fresh else 0.0)

    async def _wait(self, news: asyncio.Event, seconds: float) -> None:
        await first_of(news.wait(), self._clock.sleep(seconds))


def _continues(since: SnapshotNumbers, latest: SnapshotNumbers) -> bool:
    """Whether a follower at `since` can go on: not when it is ahead of us, nor when a backup was restored between."""
    same_restore = all(a >> RESTORE_SHIFT == b >> RESTORE_SHIFT for a, b in zip(since[1:], latest[1:], strict=True))
    return same_restore and all(a <= b for a, b in zip(since, latest, strict=True))


async def _latest(connection: Connection) -> Cursor:
    found = await read_numbers(connection)
    return Cursor(
        found[Part.POLICY], found[Part.REVOCATIONS], found[Part.POSTURES], found[Part.INVENTORY], found[Part.DEADLINES]
    )


async def _read_after(connection: Connection, cursor: Cursor, latest: Cursor, fresh_at: float) -> Batch:
    """The next page of each part that moved. Revocations come first, all of them: nothing that they
    forbid is told before."""
    changes: list[Change] = []
    reached = latest
    if latest.revocations > cursor.revocations:
        rows = (await connection.execute(_revocations(cursor.revocations, latest.revocations, fresh_at))).all()
        changes += [_revocation(row) for row in rows]
        reached = _held(reached, rows, "revocations", "number")
        if reached.revocations < latest.revocations:
            return Batch(tuple(changes), replace(cursor, revocations=reached.revocations), False)
    if latest.deadlines > cursor.deadlines:
        rows = (await connection.run(_POSTURES, {"behind": cursor.deadlines, "page": PAGE})).all()
        changes += [_posture(row) for row in rows]
        reached = _held(reached, rows, "deadlines", "deadline_number")
        if reached.deadlines < latest.deadlines:
            reached = replace(reached, postures=cursor.postures)
    if latest.inventory > cursor.inventory:
        rows = (await connection.run(_INVENTORY, {"behind": cursor.inventory, "page": PAGE})).all()
        changes += [IdentityChanged(row.inventory_number, record_of(row), row.updated_at) for row in rows]
        reached = _held(reached, rows, "inventory", "inventory_number")
    if latest.policy > cursor.policy:
        row = (await connection.execute(select(policies).where(policies.c.revision == latest.policy))).one()
        changes.append(PolicyPublished(row.revision, row.bundle, row.published_at))
    return Batch(tuple(changes), reached, reached == latest)


def _held(reached: Cursor, rows: Any, part: str, column: str) -> Cursor:
    """A full page may not be the last: stand at its end."""
    return replace(reached, **{part: getattr(rows[-1], column)}) if len(rows) == PAGE else reached


def _revocations(after: int, latest: int, fresh_at: float) -> Select[Any]:
    query = select(revocations).where(revocations.c.number > after).order_by(revocations.c.number).limit(PAGE)
    if not fresh_at:
        return query
    # Who begins anew needs those in force alone, and the last for its number.
    living = (revocations.c.serial == "") | (revocations.c.not_after > int(fresh_at))
    return query.where(or_(living & revocations.c.lifted_at.is_(None), revocations.c.number == latest))


def _revocation(row: Any) -> Revocation:
    made = revocation_of(row)
    return made if row.lifted_at is None else replace(made, serial=LIFTED_SERIAL)


def _posture(row: Any) -> PostureChanged:
    identity, posture = SpiffeId.parse(row.id), posture_of(row)
    renewal = None
    if row.renewed_serial and row.current_serial:
        renewal = Renewal(row.renewed_serial, row.current_serial, float(row.renewed_until))
    return PostureChanged(row.posture_number, identity, posture, row.attested_until, row.updated_at, renewal)

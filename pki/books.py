"""The one way to write to the authority's tables: audited before the commit, announced after it.

Laws held here:
- an event is in the audit log before the change that it tells of can be seen; when it cannot be written, nothing is;
- the events of a transaction are written after all its checks, so that the log tells of no change that a check stopped;
- followers are woken only after the commit, and only when it moved a number.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, or_, select, update

from foundation.clock import Clock
from foundation.ports import AuditEvent, AuditLog
from foundation.storage.connection import Connection
from foundation.storage.database import Database
from foundation.storage.statement import Statement
from pki.tables import numbers


class Part(StrEnum):
    """What is numbered. `DEADLINES` is known to the feed alone: a moved deadline is no new fact."""

    POLICY = "policy"
    REVOCATIONS = "revocations"
    POSTURES = "postures"
    INVENTORY = "inventory"
    DEADLINES = "deadlines"
    CRLS = "crls"


# Made once: building a statement costs as much as running it.
_NUMBERS = Statement(select(numbers.c.part, numbers.c.value))


@functools.cache
def _take(count: int) -> Statement:
    """Takes the next number of `count` parts, `part0` and so on."""
    wanted = or_(*(numbers.c.part == bindparam(f"part{i}") for i in range(count)))
    raised = update(numbers).where(wanted).values(value=numbers.c.value + 1)
    return Statement(raised.returning(numbers.c.part, numbers.c.value))


@dataclass(slots=True)
class Work:
    """A write transaction under way. `now` is when it began, in seconds since the Unix epoch."""

    connection: Connection
    now: float
    events: list[AuditEvent] = field(default_factory=list)
    moves: bool = False  # a number: there is something for followers to read

    def tell(self, kind: str, actor: str, subject: object, *, reason: str = "", **detail: Any) -> None:
        """Have this on record before the transaction commits."""
        self.events.append(AuditEvent(kind, actor, str(subject), reason, detail))

    async def take_numbers(self, *parts: Part) -> dict[Part, int]:
        """The next number of each of `parts`, taken."""
        self.moves = True
        wanted = {f"part{i}": part.value for i, part in enumerate(parts)}
        return {Part(row.part): row.value for row in await self.connection.run(_take(len(parts)), wanted)}


class Books:
    """Database, audit log and clock, as the authority's parts share them."""

    def __init__(self, database: Database, audit: AuditLog, clock: Clock, announce: Callable[[], None]) -> None:
        self.clock = clock
        self._database = database
        self._audit = audit
        self._announce = announce

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Work]:
        """A write transaction. Raises `Fault(AUDIT_FAILED | STORAGE_FAILED)`; then nothing has changed."""
        async with self._database.transaction() as connection:
            work = Work(connection, self.clock.now())
            yield work
            await self._put_on_record(work.events)
        if work.moves:
            self._announce()

    async def _put_on_record(self, events: list[AuditEvent]) -> None:
        if len(events) == 1:
            await self._audit.append(events[0])
        else:  # together, so that they share one write to disk; they are taken in this order
            await asyncio.gather(*(self._audit.append(event) for event in events))

    def reading(self) -> AbstractAsyncContextManager[Connection]:
        """One consistent view of the tables."""
        return self._database.reading()


async def read_numbers(connection: Connection) -> dict[Part, int]:
    """The last number of every part."""
    return {Part(row.part): row.value for row in await connection.run(_NUMBERS, {})}

"""What nodes say of their own health: the newest report of each.

Laws held here:
- a report is shown and counted, and nothing else: it changes no entry, no posture and no number, and no gateway hears
  of it;
- when it was received is by our clock, and so is who is silent: a node's own clock decides nothing;
- a node has one row, however often it reports, and a report a second at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, bindparam, case, func, insert, literal, select, update

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import State
from foundation.reasons import Reason
from foundation.storage.statement import Statement
from foundation.wire.health import SILENT_AFTER, HealthReport, Standing, ailments, standing
from pki.books import Books
from pki.tables import identities, node_health

LEAST_SECONDS = 1.0
COUNT_EVERY = 30.0
MAX_PAGE = 1000
_log = logging.getLogger(__name__)

_ONE = Statement(select(node_health).where(node_health.c.node == bindparam("wanted")))
_REPLACE = Statement(update(node_health).where(node_health.c.node == bindparam("wanted")))
_ADD = Statement(insert(node_health))


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """How a node stands. `report` is its newest, received at `received_at` (seconds since the Unix epoch, ours); None
    and 0 where none was heard."""

    node: SpiffeId
    standing: Standing
    received_at: float = 0.0
    report: HealthReport | None = None


class NodeHealth:
    """Reports over the authority's tables."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def take(self, node: SpiffeId, raw: bytes) -> float:
        """Keep what `node`, which is proven, says of itself, and tell our time. Raises `Fault(MESSAGE_MALFORMED |
        MESSAGE_TOO_LARGE)` and `Fault(RATE_LIMITED)` for a second report within a second."""
        report = HealthReport.parse(raw)
        async with self._books.writing() as work:
            before = (await work.connection.run(_ONE, {"wanted": str(node)})).first()
            if before and 0 <= work.now - before.received_at < LEAST_SECONDS:
                raise Fault(Reason.RATE_LIMITED, "a report a second is enough")
            row = _row(report, work.now)
            if before:
                await work.connection.run(_REPLACE, row | {"wanted": str(node)})
            else:
                await work.connection.run(_ADD, row | {"node": str(node)})
            return work.now

    async def of(self, node: SpiffeId) -> NodeStanding:
        """How `node` stands now."""
        async with self._books.reading() as connection:
            row = (await connection.run(_ONE, {"wanted": str(node)})).first()
        return _standing(node, row, self._books.clock.now()) if row else NodeStanding(node, Standing.UNKNOWN)

    async def page(
        self, wanted: Standing | None = None, *, after: str = "", limit: int = 100
    ) -> tuple[NodeStanding, ...]:
        """At most `limit` (1 to 1000) active nodes that stand so, in the order of their SPIFFE IDs, behind the ID
        `after`."""
        now = self._books.clock.now()
        query = _active_nodes(identities.c.id, node_health).where(identities.c.id > after)
        if wanted is not None:
            query = query.where(_standing_column(now) == wanted.value)
        query = query.order_by(identities.c.id).limit(max(1, min(limit, MAX_PAGE)))
        async with self._books.reading() as connection:
            return tuple(_standing(SpiffeId.parse(row.id), row, now) for row in await connection.execute(query))

    async def count(self) -> Mapping[Standing, int]:
        """How many active nodes stand how, each standing named."""
        column = _standing_column(self._books.clock.now()).label("standing")
        query = _active_nodes(column, func.count().label("nodes")).group_by(column)
        async with self._books.reading() as connection:
            found = {Standing(row.standing): int(row.nodes) for row in await connection.execute(query)}
        return {each: found.get(each, 0) for each in Standing}

    async def keep_counting(self, tell: Callable[[Mapping[Standing, int]], None]) -> None:
        """`tell` the counts now and then, until cancelled. What fails is tried again."""
        while True:
            try:
                tell(await self.count())
            except Fault as fault:
                _log.error("nodes cannot be counted: %s", fault)
            await self._books.clock.sleep(COUNT_EVERY)


def _row(report: HealthReport, now: float) -> dict[str, Any]:
    return {
        "report": report.encode(),
        "ails": int(bool(ailments(report))),
        "received_at": now,
        "due_at": now + SILENT_AFTER * report.interval,
    }


def _standing(node: SpiffeId, row: Any, now: float) -> NodeStanding:
    if row.report is None:
        return NodeStanding(node, Standing.UNKNOWN)
    found = standing(ails=bool(row.ails), due=row.due_at, now=now)
    return NodeStanding(node, found, row.received_at, HealthReport.parse(row.report))


def _active_nodes(*columns: Any) -> Select[Any]:
    joined = identities.outerjoin(node_health, node_health.c.node == identities.c.id)
    active = and_(identities.c.kind == Kind.NODE.value, identities.c.state == State.ACTIVE.value)
    return select(*columns).select_from(joined).where(active)


def _standing_column(now: float) -> Any:
    """`foundation.wire.health.standing`, as SQL."""
    return case(
        (node_health.c.due_at.is_(None), literal(Standing.UNKNOWN.value)),
        (node_health.c.due_at < now, literal(Standing.SILENT.value)),
        (node_health.c.ails != 0, literal(Standing.AILING.value)),
        else_=literal(Standing.WELL.value),
    )

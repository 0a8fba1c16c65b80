"""What nodes noted while they were cut off, taken once and in order.

Laws held here:
- a record and the word that it was taken are committed together: whoever repeats a batch adds nothing;
- an incarnation of a node's outbox has one history. A batch that does not continue it, by the hash over all before, is
  refused (`CONFLICT`), and the node begins another incarnation, saying so;
- records that are missing (this authority was restored from a backup) are on the audit log, and hold up nothing;
- rows are bounded: of each node the newest `KEPT` records and the newest `INCARNATIONS` of its outbox.

Decisions and what the node's agent did are reported by the batch on the audit log, with the hash over them, so that the
rows here cannot be changed unseen while the node's batch is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from foundation.decisionlog.ids import is_decision_id
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.ports import NodeWord
from foundation.reasons import Reason
from foundation.storage.connection import Connection
from foundation.storage.statement import Statement
from foundation.wire.records import CHAIN_START, NodeRecord, Receipt, RecordBatch, RecordKind, chained
from pki.books import Books, Work
from pki.tables import node_outboxes, node_records

KEPT = 5000
INCARNATIONS = 8
MAX_PAGE = 1000
MAX_WORDS = 4  # of one decision: two nodes that say they made it are one too many


_OF_DECISION = Statement(
    select(node_records)
    .where(node_records.c.decision == bindparam("wanted"))
    .order_by(node_records.c.received_at, node_records.c.node, node_records.c.number)
    .limit(MAX_WORDS)
)


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """One record as it was taken. `number` counts those of its node; `received_at` is our time, the record's own is the
    node's."""

    node: SpiffeId
    number: int
    incarnation: str
    sequence: int
    received_at: float
    record: NodeRecord


class NodeRecords:
    """Nodes' records over the authority's tables. Implements `foundation.ports.NodeWords`."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def take(self, node: SpiffeId, batch: RecordBatch) -> Receipt:
        """Take what is new in `batch`. The receipt is of all that was ever taken. Raises `Fault(CONFLICT)` for another
        history, and `Fault(AUDIT_FAILED | STORAGE_FAILED)`; then nothing was taken."""
        records = batch.records()
        async with self._books.writing() as work:
            # 1. How far this incarnation was taken before; of one that is not known, nothing.
            before = await _taken(work.connection, node, batch.incarnation)
            # 2. The batch continues that, or repeats some of it.
            new = _new(before, batch)
            last = batch.first + len(batch.lines) - 1
            if before is not None and new == len(batch.lines):
                return before
            # 3. What is missing in between is told, and not waited for.
            expected = before.taken + 1 if before else 1
            if batch.first > expected:
                span = _span(batch, expected, batch.first - 1)
                work.tell("node.records_missing", str(node), node, **span)
            # 4. What is new is kept, with the word that it was taken.
            receipt = Receipt(last, chained(batch.chain, batch.lines))
            await _keep(work, node, batch, records, new)
            await _write_taken(work, node, batch.incarnation, receipt, is_new=before is None)
            if any(record.kind is not RecordKind.HEALTH for record in records[new:]):
                span = _span(batch, batch.first + new, last) | {"chain": receipt.chain.hex()}
                work.tell("node.reported", str(node), node, **span)
            return receipt

    async def page(
        self, node: SpiffeId, *, kind: RecordKind | None = None, after: int = 0, limit: int = 100
    ) -> tuple[KeptRecord, ...]:
        """At most `limit` (1 to 1000) records of `node` behind the number `after`, in the order of their taking."""
        query = select(node_records).where(node_records.c.node == str(node), node_records.c.number > after)
        if kind is not None:
            query = query.where(node_records.c.kind == kind.value)
        async with self._books.reading() as connection:
            rows = await connection.execute(query.order_by(node_records.c.number).limit(max(1, min(limit, MAX_PAGE))))
            return tuple(_kept(row) for row in rows)

    async def of_decision(self, decision_id: str) -> tuple[NodeWord, ...]:
        """See `foundation.ports.NodeWords.of_decision`. Reads the index alone."""
        async with self._books.reading() as connection:
            found = [_kept(row) for row in await connection.run(_OF_DECISION, {"wanted": decision_id})]
        return tuple(NodeWord(each.node, each.record.at, each.received_at, each.record.body) for each in found)


def _new(before: Receipt | None, batch: RecordBatch) -> int:
    """The index of the first line in `batch` that was not taken yet. Raises `Fault(CONFLICT)`."""
    if before is None or batch.first > before.taken + 1:
        if before is None and batch.first == 1 and batch.chain != CHAIN_START:
            raise _other_history()
        return 0
    known = before.taken + 1 - batch.first
    if known > len(batch.lines):  # all of it is long past; the receipt tells the node how far we are
        return len(batch.lines)
    if chained(batch.chain, batch.lines[:known]) != before.chain:
        raise _other_history()
    return known


def _span(batch: RecordBatch, first: int, last: int) -> dict[str, Any]:
    return {"incarnation": batch.incarnation, "first": first, "last": last}


def _other_history() -> Fault:
    return Fault(Reason.CONFLICT, "the records before are others than those that were taken", field="chain")


async def _taken(connection: Connection, node: SpiffeId, incarnation: str) -> Receipt | None:
    found = await connection.execute(
        select(node_outboxes.c.taken, node_outboxes.c.chain).where(
            node_outboxes.c.node == str(node), node_outboxes.c.incarnation == incarnation
        )
    )
    row = found.first()
    return None if row is None else Receipt(row.taken, row.chain)


async def _write_taken(work: Work, node: SpiffeId, incarnation: str, receipt: Receipt, *, is_new: bool) -> None:
    values: dict[str, Any] = {"taken": receipt.taken, "chain": receipt.chain, "updated_at": work.now}
    mine = node_outboxes.c.node == str(node)
    if not is_new:
        which = mine & (node_outboxes.c.incarnation == incarnation)
        await work.connection.execute(update(node_outboxes).where(which).values(**values))
        return
    row = {"node": str(node), "incarnation": incarnation, **values}
    await work.connection.execute(insert(node_outboxes).values(**row))
    newest = select(node_outboxes.c.incarnation).where(mine).order_by(node_outboxes.c.updated_at.desc())
    known = [each.incarnation for each in await work.connection.execute(newest)]
    past = [each for each in known if each != incarnation][INCARNATIONS - 1 :]
    if past:
        await work.connection.execute(delete(node_outboxes).where(mine, node_outboxes.c.incarnation.in_(past)))


async def _keep(work: Work, node: SpiffeId, batch: RecordBatch, records: tuple[NodeRecord, ...], new: int) -> None:
    mine = node_records.c.node == str(node)
    last = int(await work.connection.scalar(select(func.max(node_records.c.number)).where(mine)) or 0)
    rows = [
        {
            "node": str(node),
            "number": last + 1 + i,
            "incarnation": batch.incarnation,
            "sequence": batch.first + new + i,
            "kind": records[new + i].kind.value,
            "received_at": work.now,
            "record": line,
            "decision": _decision(records[new + i]),
        }
        for i, line in enumerate(batch.lines[new:])
    ]
    await work.connection.execute(insert(node_records), rows)
    await work.connection.execute(delete(node_records).where(mine, node_records.c.number <= last + len(rows) - KEPT))


def _decision(record: NodeRecord) -> str | None:
    """Of which decision a record is. Whatever a node may write there, only what looks like an ID is looked up."""
    known = record.body.get("id") if record.kind is RecordKind.DECISION else None
    return known if isinstance(known, str) and is_decision_id(known) else None


def _kept(row: Any) -> KeptRecord:
    node, record = SpiffeId.parse(row.node), NodeRecord.parse(row.record)
    return KeptRecord(node, row.number, row.incarnation, row.sequence, row.received_at, record)

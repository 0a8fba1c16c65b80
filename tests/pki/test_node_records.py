"""What nodes deliver is taken once and in order, whatever is repeated, lost or made up."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, func, select

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.storage import database
from foundation.wire.records import CHAIN_START, NodeRecord, Receipt, RecordBatch, RecordKind, chained
from pki import node_records
from pki.node_records import INCARNATIONS
from pki.tables import node_outboxes
from tests.support.site import Site, open_site

ONE, OTHER = "1" * 32, "2" * 32
LINES = tuple(NodeRecord(1e9 + i, RecordKind.DECISION, {"id": f"d{i}"}).encode() for i in range(1, 41))


def batch(first: int, last: int, incarnation: str = ONE, lines: tuple[bytes, ...] = LINES) -> RecordBatch:
    """The records from `first` to `last`, as an outbox with `lines` delivers them."""
    return RecordBatch(incarnation, first, chained(CHAIN_START, lines[: first - 1]), lines[first - 1 : last])


def receipt(last: int) -> Receipt:
    return Receipt(last, chained(CHAIN_START, LINES[:last]))


async def taken(site: Site, node: SpiffeId) -> list[str]:
    return [each.record.body["id"] for each in await site.authority.node_records.page(node, limit=1000)]


async def test_a_batch_is_taken_once_however_often_it_comes(site: Site) -> None:
    node = await site.expect()
    for _ in range(3):
        assert await site.authority.node_records.take(node, batch(1, 5)) == receipt(5)
    assert await taken(site, node) == ["d1", "d2", "d3", "d4", "d5"]
    assert [event.detail["last"] for event in site.audit.events if event.kind == "node.reported"] == [5]


async def test_what_overlaps_is_taken_from_where_it_is_new(site: Site) -> None:
    node, records = await site.expect(), site.authority.node_records
    await records.take(node, batch(1, 5))
    assert await records.take(node, batch(3, 8)) == receipt(8)
    assert await records.take(node, batch(2, 4)) == receipt(8)
    assert await taken(site, node) == [f"d{i}" for i in range(1, 9)]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_repeated_each_record_stands_once_in_order(site: Site, seed: int) -> None:
    node, lots, delivered = await site.expect(), random.Random(seed), 0
    while delivered < 40:
        first = lots.randint(1, delivered + 1)
        last = lots.randint(first, min(40, first + 9))
        got = await site.authority.node_records.take(node, batch(first, last))
        delivered = max(delivered, last)
        assert got == receipt(delivered)
    assert await taken(site, node) == [f"d{i}" for i in range(1, 41)]


@pytest.mark.parametrize(
    "forged",
    [
        replace(batch(3, 8), chain=bytes(32)),
        replace(batch(6, 8), chain=bytes(32)),
        batch(3, 8, lines=(*LINES[:3], LINES[9], *LINES[4:])),
        replace(batch(1, 2, OTHER), chain=b"\1" * 32),
    ],
)
async def test_another_history_is_refused(site: Site, forged: RecordBatch) -> None:
    node = await site.expect()
    await site.authority.node_records.take(node, batch(1, 5))
    with pytest.raises(Fault) as caught:
        await site.authority.node_records.take(node, forged)
    assert caught.value.reason is Reason.CONFLICT
    assert await taken(site, node) == ["d1", "d2", "d3", "d4", "d5"]


async def test_what_is_missing_is_told_and_holds_up_nothing(site: Site) -> None:
    node = await site.expect()
    assert await site.authority.node_records.take(node, batch(4, 6)) == receipt(6)
    assert await site.authority.node_records.take(node, batch(9, 9)) == receipt(9)
    spans = [
        (event.detail["first"], event.detail["last"])
        for event in site.audit.events
        if event.kind == "node.records_missing"
    ]
    assert spans == [(1, 3), (7, 8)]


async def test_nodes_and_incarnations_are_apart(site: Site) -> None:
    a, b = await site.expect("a"), await site.expect("b")
    records = site.authority.node_records
    for node, incarnation in ((a, ONE), (b, ONE), (a, OTHER)):
        assert await records.take(node, batch(1, 2, incarnation)) == receipt(2)
    assert await taken(site, a) == ["d1", "d2"] * 2
    assert await taken(site, b) == ["d1", "d2"]


async def test_what_is_kept_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_records, "KEPT", 7)
    node = await site.expect()
    await site.authority.node_records.take(node, batch(1, 5))
    await site.authority.node_records.take(node, batch(6, 20))
    assert await taken(site, node) == [f"d{i}" for i in range(14, 21)]
    for i in range(INCARNATIONS + 5):
        site.clock.advance(1)
        await site.authority.node_records.take(node, batch(1, 1, f"{i:032x}"))
    async with site.database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(node_outboxes)) == INCARNATIONS


def decision_id(number: int) -> str:
    return f"d-{number:028x}"


def of(ids: list[object], kind: RecordKind = RecordKind.DECISION, incarnation: str = ONE) -> RecordBatch:
    """A first batch of records with these IDs."""
    lines = tuple(NodeRecord(1e9, kind, {"id": each}).encode() for each in ids)
    return RecordBatch(incarnation, 1, CHAIN_START, lines)


async def test_a_decision_is_found_by_its_id(site: Site) -> None:
    a, b = await site.expect("a"), await site.expect("b")
    records = site.authority.node_records
    await records.take(a, of([decision_id(n) for n in range(5)]))
    site.clock.advance(10)
    await records.take(b, of([decision_id(3)]))
    assert [word.node for word in await records.of_decision(decision_id(2))] == [a]
    found = await records.of_decision(decision_id(3))
    assert [(word.node, word.at, word.body) for word in found] == [
        (node, 1e9, {"id": decision_id(3)}) for node in (a, b)
    ]
    assert found[1].received_at == found[0].received_at + 10
    assert await records.of_decision(decision_id(9)) == ()


async def test_nothing_else_is_taken_for_a_decision(site: Site) -> None:
    node, records = await site.expect(), site.authority.node_records
    await records.take(node, of(["", "d-1", 7, None, {"d": 1}, decision_id(1).upper(), "x" * 4000]))
    await records.take(node, of([decision_id(1)], RecordKind.AUDIT, OTHER))
    for asked in ("", "d-1", decision_id(1), decision_id(1).upper()):
        assert await records.of_decision(asked) == ()


@pytest.mark.every_storage
async def test_a_look_up_is_bounded_and_by_the_index(site: Site) -> None:
    node, records = await site.expect(), site.authority.node_records
    await records.take(node, of([decision_id(1)] * 20))
    assert len(await records.of_decision(decision_id(1))) == node_records.MAX_WORDS

    def plan(connection: Connection) -> str:
        if connection.dialect.name != "sqlite":  # PostgreSQL goes by statistics, and reads a small table whole
            return "ix_node_records_decision"
        asked = node_records._OF_DECISION.clause.params(wanted="d")
        text = asked.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all())

    async with site.database.reading() as connection:
        assert "ix_node_records_decision" in await connection.run_sync(plan)


@pytest.mark.every_storage
async def test_records_from_before_they_were_looked_up_are_found_too(site: Site) -> None:
    node, records = await site.expect(), site.authority.node_records
    await records.take(node, of([*(decision_id(n) for n in range(2500)), "d-1", None]))
    await records.take(node, of([decision_id(1)], RecordKind.HEALTH, OTHER))

    def back_and_forth(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(database.__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
        command.upgrade(config, "head")

    async with site.database.transaction() as connection:
        await connection.run_sync(back_and_forth)
    for number in (0, 1, 999, 1000, 1001, 2499):
        assert [word.body for word in await records.of_decision(decision_id(number))] == [{"id": decision_id(number)}]
    assert await records.of_decision("d-1") == ()


async def test_an_audit_log_that_fails_takes_nothing(site: Site) -> None:
    node = await site.expect()
    site.audit.broken = True
    with pytest.raises(Fault):
        await site.authority.node_records.take(node, batch(1, 5))
    site.audit.broken = False
    assert await taken(site, node) == []
    assert await site.authority.node_records.take(node, batch(1, 5)) == receipt(5)


async def test_health_alone_is_nothing_for_the_audit_log(site: Site) -> None:
    node, line = await site.expect(), NodeRecord(1e9, RecordKind.HEALTH, {"id": "h"}).encode()
    await site.authority.node_records.take(node, RecordBatch(ONE, 1, CHAIN_START, (line,)))
    assert not [event for event in site.audit.events if event.kind == "node.reported"]
    assert len(await site.authority.node_records.page(node, kind=RecordKind.HEALTH)) == 1
    assert await site.authority.node_records.page(node, kind=RecordKind.AUDIT) == ()


async def test_it_is_known_after_a_restart(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.authority.node_records.take(node, batch(1, 5))
    async with open_site(tmp_path) as site:
        assert await site.authority.node_records.take(node, batch(1, 6)) == receipt(6)
        assert await taken(site, node) == [f"d{i}" for i in range(1, 7)]

"""Class "a retry repeats an effect": a node's batch of records comes again, whole, in part, together with more, or
after its answer was lost; and a disk that was put back delivers other records under numbers that were taken."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.records import CHAIN_START, NodeRecord, RecordBatch, RecordKind, chained
from tests.support.site import Site, open_site

OUTBOX = "a" * 32
LINES = tuple(NodeRecord(1e9, RecordKind.AUDIT, {"n": n}).encode() for n in range(6))
OTHERS = tuple(NodeRecord(1e9, RecordKind.AUDIT, {"n": 100 + n}).encode() for n in range(6))


def batch(first: int, last: int, lines: tuple[bytes, ...] = LINES) -> RecordBatch:
    return RecordBatch(OUTBOX, first, chained(CHAIN_START, lines[: first - 1]), lines[first - 1 : last])


async def taken(site: Site, node: SpiffeId) -> list[int]:
    return [each.record.body["n"] for each in await site.authority.node_records.page(node)]


async def test_no_repetition_is_a_second_record(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.authority.node_records.take(node, batch(1, 3))
        for first, last in itertools.combinations_with_replacement(range(1, 7), 2):
            if first <= 4:
                await site.authority.node_records.take(node, batch(first, last))
        assert await taken(site, node) == list(range(6))


@pytest.mark.parametrize(("first", "last"), [(1, 3), (1, 6), (2, 6), (4, 6)])
async def test_no_other_record_comes_under_a_number_that_was_taken(tmp_path: Path, first: int, last: int) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.authority.node_records.take(node, batch(1, 3))
        with pytest.raises(Fault) as caught:
            await site.authority.node_records.take(node, batch(first, last, OTHERS))
        assert caught.value.reason is Reason.CONFLICT
        assert await taken(site, node) == [0, 1, 2]

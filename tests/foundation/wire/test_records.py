"""A node's records on the wire: what is written is read back, nothing else is a batch, and chains tell histories."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.records import (
    CHAIN_START,
    MAX_BATCH_RECORDS,
    MAX_RECORD_BYTES,
    NodeRecord,
    Receipt,
    RecordBatch,
    RecordKind,
    chained,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_TEXT, below, max_size=3),
    max_leaves=8,
)
RECORDS = st.builds(
    NodeRecord, st.floats(0, 1e10), st.sampled_from(RecordKind), st.dictionaries(_TEXT, _VALUES, max_size=4)
)
LINES = st.lists(RECORDS.map(NodeRecord.encode), min_size=1, max_size=5).map(tuple)
BATCHES = st.builds(
    RecordBatch,
    st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    st.integers(1, 2**53),
    st.binary(min_size=32, max_size=32),
    LINES,
)
LINE = NodeRecord(1.0, RecordKind.AUDIT, {"what": "x"}).encode()


@settings(deadline=None)
@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: NodeRecord) -> None:
    line = record.encode()
    assert b"\n" not in line
    assert NodeRecord.parse(line) == record


@settings(deadline=None)
@given(BATCHES)
def test_a_batch_comes_back_as_it_was(batch: RecordBatch) -> None:
    assert RecordBatch.parse(batch.encode()) == batch


@settings(deadline=None)
@given(st.integers(0, 2**53), st.binary(min_size=32, max_size=32))
def test_a_receipt_comes_back_as_it_was(taken: int, chain: bytes) -> None:
    assert Receipt.parse(Receipt(taken, chain).encode()) == Receipt(taken, chain)


@settings(max_examples=300, deadline=None)
@given(BATCHES.map(RecordBatch.encode), st.data())
def test_a_damaged_batch_is_refused_or_another(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw) - 1))
    damaged = raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + 1 :]
    with contextlib.suppress(Fault):
        RecordBatch.parse(damaged)


@pytest.mark.parametrize(
    "body",
    [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, {1: "x"} | {"1": "y"}, {"x": [1] * MAX_RECORD_BYTES}],
)
def test_what_could_not_be_read_is_not_written(body: Any) -> None:
    with pytest.raises(Fault) as caught:
        NodeRecord(1.0, RecordKind.HEALTH, body).encode()
    assert caught.value.reason in {Reason.MESSAGE_MALFORMED, Reason.MESSAGE_TOO_LARGE}


@pytest.mark.parametrize("count", [0, MAX_BATCH_RECORDS + 1])
def test_a_batch_has_some_records_and_not_too_many(count: int) -> None:
    with pytest.raises(Fault):
        RecordBatch.parse(RecordBatch("0" * 32, 1, CHAIN_START, (LINE,) * count).encode())


def test_a_torn_batch_is_refused() -> None:
    with pytest.raises(Fault):
        RecordBatch.parse(RecordBatch("0" * 32, 1, CHAIN_START, (LINE,)).encode()[:-1])


@settings(deadline=None)
@given(LINES, LINES)
def test_the_chain_is_over_all_lines_in_order(before: tuple[bytes, ...], after: tuple[bytes, ...]) -> None:
    assert chained(chained(CHAIN_START, before), after) == chained(CHAIN_START, (*before, *after))
    assert chained(CHAIN_START, before) != chained(CHAIN_START, (*before, b"{}"))

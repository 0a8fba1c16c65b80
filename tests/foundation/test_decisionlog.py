"""The decision log: kept before the answer, found again, bounded, and honest about what it lost."""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.decisionlog import find as finder
from foundation.decisionlog.closing import SegmentCloser
from foundation.decisionlog.folders import take_lock, worker_folder
from foundation.decisionlog.ids import DecisionIds, is_decision_id
from foundation.decisionlog.line import encode, with_input
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.masking import Mask
from foundation.decisionlog.segments import segment_paths
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.identity import SnapshotNumbers
from foundation.ports import AuditEvent, DecisionEntry
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock
from tests.support.decisions import read_segment


class Audit:
    """Keeps events in memory."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    async def append(self, event: AuditEvent) -> int:
        self.events.append(event)
        return len(self.events) - 1


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def where(tmp_path: Path) -> DecisionLogSettings:
    return DecisionLogSettings(tmp_path / "decisions", segment_bytes=4096, total_bytes=1 << 20)


@pytest.fixture
async def log(where: DecisionLogSettings, audit: Audit) -> AsyncIterator[DecisionLog]:
    opened = await DecisionLog.open(where, ManualClock(), SegmentCloser(where, audit), mask=Mask(bytes(32)))
    yield opened
    await opened.close()


def entry(log: DecisionLog, **changes: Any) -> DecisionEntry:
    made = DecisionEntry(
        id=log.ids(),
        at=1_800_000_000.25,
        allow=True,
        reasons=("granted",),
        identity="spiffe://fleet/node/n1",
        route="fleet",
        method="GET",
        target="/v1/things?x=1",
        grant="g1",
        numbers=SnapshotNumbers(1, 2, 3, 4),
        input=b'{"now":1}',
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def lines(where: DecisionLogSettings) -> bytes:
    return b"".join(read_segment(path) for path in segment_paths(where.directory))


async def test_a_decision_is_on_record_after_its_turn(log: DecisionLog, where: DecisionLogSettings) -> None:
    first = entry(log)
    log.record(first)
    assert lines(where) == b""
    await asyncio.sleep(0)
    assert json.loads(lines(where)) == {
        "id": first.id,
        "at": 1_800_000_000.25,
        "allow": True,
        "reasons": ["granted"],
        "identity": "spiffe://fleet/node/n1",
        "route": "fleet",
        "method": "GET",
        "target": Mask(bytes(32)).target("/v1/things?x=1"),
        "grant": "g1",
        "numbers": [1, 2, 3, 4],
        "input": {"now": 1},
    }


async def test_flush_hands_over_at_once_and_is_idempotent(log: DecisionLog, where: DecisionLogSettings) -> None:
    first = entry(log)
    log.record(first)
    log.flush(first)
    log.flush(first)
    await asyncio.sleep(0)
    assert lines(where).count(b"\n") == 1


async def test_a_turn_makes_one_write(log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = os.write

    def count(descriptor: int, data: bytes) -> int:
        written.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr("foundation.decisionlog.segments.os.write", count)
    for _ in range(5):
        log.record(entry(log))
    await asyncio.sleep(0)
    assert len(written) == 1


async def test_equal_inputs_are_kept_once_per_segment(log: DecisionLog, where: DecisionLogSettings) -> None:
    entries = [entry(log, input=b'{"route":"fleet"}', input_key=b"k") for _ in range(60)]
    for each in entries:
        log.record(each)
        log.flush(each)
    paths = segment_paths(where.directory)
    assert len(paths) > 2
    assert lines(where).count(b'"input":') == len(paths)
    for each in entries:
        assert (await log.find(each.id))["input"] == {"route": "fleet"}


async def test_inputs_without_a_key_are_never_shared(log: DecisionLog) -> None:
    one, two = entry(log, input=b'{"a":1}'), entry(log, input=b'{"a":2}')
    log.record(one)
    log.record(two)
    assert [(await log.find(each.id))["input"]["a"] for each in (one, two)] == [1, 2]


async def test_an_input_is_bounded_and_one_line(log: DecisionLog) -> None:
    large = entry(log, input=json.dumps({"x": "y" * 100_000}).encode())
    pretty = entry(log, input=json.dumps({"a": {"b": 1}}, indent=2).encode(), target="/" + "a" * 20_000)
    log.record(large)
    log.record(pretty)
    assert (await log.find(large.id))["input"] == {"omitted": "too large"}
    found = await log.find(pretty.id)
    assert (found["input"], len(found["target"])) == ({"a": {"b": 1}}, 8192)


async def test_closed_segments_are_compressed_and_their_digest_is_in_the_audit_log(
    where: DecisionLogSettings, audit: Audit
) -> None:
    log = await DecisionLog.open(where, ManualClock(), SegmentCloser(where, audit))
    entries = [entry(log) for _ in range(50)]
    for each in entries:
        log.record(each)
        log.flush(each)
    await log.close()
    paths = segment_paths(where.directory)
    assert all(path.name.endswith(".jsonl.gz") for path in paths)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert {event.kind for event in audit.events} == {"decisions.segment_closed"}
    digests = {hashlib.sha256(read_segment(path)).hexdigest() for path in paths}
    assert {event.detail["sha256"] for event in audit.events} == digests
    assert sum(event.detail["count"] for event in audit.events) == 50
    for each in entries:
        assert finder.find(where.directory, each.id)["id"] == each.id
    newest = finder.recent(where.directory, 30)
    assert [record["id"] for record in newest] == [each.id for each in reversed(entries)][:30]


async def test_recent_of_an_empty_log(log: DecisionLog) -> None:
    assert await log.recent(10) == []
    log.record(entry(log))
    assert len(await log.recent(10)) == 1
    assert await log.recent(0) == []


async def test_a_decision_recorded_late_is_found_in_the_next_segment(
    log: DecisionLog, where: DecisionLogSettings
) -> None:
    first, late = entry(log), entry(log)
    log.record(first)
    while len(segment_paths(where.directory)) < 2:
        log.record(entry(log))
        await asyncio.sleep(0)
    log.record(late)
    assert (await log.find(late.id))["id"] == late.id


@pytest.mark.parametrize("unknown", ["", "x", "d-" + "0" * 28, "d-" + "f" * 28, "../../etc/passwd"])
async def test_what_is_not_on_record_is_not_found(log: DecisionLog, unknown: str) -> None:
    log.record(entry(log))
    with pytest.raises(Fault) as caught:
        await log.find(unknown)
    assert caught.value.reason is Reason.NOT_FOUND


async def test_at_the_disk_bound_the_oldest_go_counted_and_named(where: DecisionLogSettings, audit: Audit) -> None:
    dropped: list[int] = []
    bound = replace(where, total_bytes=6000)
    log = await DecisionLog.open(bound, ManualClock(), SegmentCloser(bound, audit, dropped.append))
    noise = os.urandom
    for _ in range(100):
        log.record(entry(log, input=b'{"noise":"%s"}' % noise(200).hex().encode()))
        await asyncio.sleep(0)
    await log.close()
    assert sum(path.stat().st_size for path in segment_paths(where.directory)) <= 6000
    named = [event.detail["count"] for event in audit.events if event.kind == "decisions.segment_dropped"]
    assert named == dropped != []
    assert sum(dropped) == 100 - lines(where).count(b"\n")


def damage(where: DecisionLogSettings, end: bytes) -> Path:
    """The oldest segment, with another end."""
    path = where.directory / f"d-{0:028x}.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(os.urandom(20).hex().encode() for _ in range(100)))[:-400] + end)
    return path


async def test_a_damaged_segment_keeps_nobody_from_going_on(where: DecisionLogSettings, audit: Audit) -> None:
    where.directory.mkdir(mode=0o700)
    damage(where, b"")
    log = await DecisionLog.open(where, ManualClock(), SegmentCloser(where, audit))
    found = entry(log)
    log.record(found)
    assert (await log.find(found.id))["id"] == found.id
    await log.close()


@pytest.mark.parametrize("end", [b"", b"no gzip at all", b"\0" * 400])
async def test_a_damaged_segment_goes_at_the_disk_bound_too(
    where: DecisionLogSettings, audit: Audit, end: bytes
) -> None:
    bound = replace(where, total_bytes=6000)
    log = await DecisionLog.open(bound, ManualClock(), SegmentCloser(bound, audit))
    damaged = damage(where, end)
    for _ in range(100):
        log.record(entry(log, input=b'{"noise":"%s"}' % os.urandom(200).hex().encode()))
        await asyncio.sleep(0)
    await log.close()
    assert not damaged.exists()
    assert sum(path.stat().st_size for path in segment_paths(where.directory)) <= 6000


def full_after(count: int) -> Callable[[int, bytes], int]:
    write = os.write
    budget = [count]

    def short(descriptor: int, data: bytes) -> int:
        if not budget:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: budget.pop()])

    return short


async def test_on_a_full_disk_critical_refuses_and_others_are_counted(
    log: DecisionLog, where: DecisionLogSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = entry(log)
    log.record(kept)
    log.flush(kept)
    with monkeypatch.context() as patch:
        patch.setattr("foundation.decisionlog.segments.os.write", full_after(10))
        tolerant, critical = entry(log, input_key=b"k"), entry(log, critical=True, input_key=b"k")
        log.record(tolerant)
        log.record(critical)
        log.flush(tolerant)
        with pytest.raises(Fault) as caught:
            log.flush(critical)
        assert caught.value.reason is Reason.DECISION_UNRECORDED
    assert (log.dropped, lines(where).count(b"\n")) == (2, 1)
    again = entry(log, critical=True, input_key=b"k")
    log.record(again)
    log.flush(again)
    assert (await log.find(again.id))["input"] == {"now": 1}


async def test_a_loss_in_the_turns_own_write_is_still_told(log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundation.decisionlog.segments.os.write", full_after(0))
    critical = entry(log, critical=True)
    log.record(critical)
    await asyncio.sleep(0)
    with pytest.raises(Fault):
        log.flush(critical)


async def test_after_close_nothing_passes_as_kept(where: DecisionLogSettings, audit: Audit) -> None:
    log = await DecisionLog.open(where, ManualClock(), SegmentCloser(where, audit))
    await log.close()
    late = entry(log, critical=True)
    log.record(late)
    with pytest.raises(Fault):
        log.flush(late)


async def test_reopening_after_a_crash_mends_and_goes_on(where: DecisionLogSettings, audit: Audit) -> None:
    clock = ManualClock()
    log = await DecisionLog.open(where, clock, SegmentCloser(where, audit))
    kept = [entry(log) for _ in range(3)]
    for each in kept:
        log.record(each)
    await log.close()
    torn = where.directory / f"{log.ids()}.jsonl"
    last = entry(log)
    torn.write_bytes(encode(last, with_input(b"{}")) + b'{"id":"d-torn')
    (where.directory / ".draft.jsonl.gz").write_bytes(b"half")
    clock.set_wall(0)
    again = await DecisionLog.open(where, clock, SegmentCloser(where, audit))
    assert again.ids() > last.id
    for each in [*kept, last]:
        assert (await again.find(each.id))["id"] == each.id
    await again.close()
    assert all(path.name.endswith(".gz") for path in segment_paths(where.directory))


async def test_a_second_writer_is_refused(log: DecisionLog, where: DecisionLogSettings, audit: Audit) -> None:
    log.record(entry(log))
    with pytest.raises(Fault):
        await DecisionLog.open(where, ManualClock(), SegmentCloser(where, audit))


async def test_every_writers_decisions_are_found_and_share_the_bound(
    log: DecisionLog, where: DecisionLogSettings, audit: Audit
) -> None:
    closer = SegmentCloser(where, audit)
    folders = [worker_folder(where.directory, number) for number in (0, 1)]
    writers = [await DecisionLog.open(replace(where, directory=each), ManualClock(), closer) for each in folders]
    made = [entry(each) for _ in range(4) for each in (log, *writers)]
    for writer, one in zip([log, *writers] * 4, made, strict=True):
        writer.record(one)
        await asyncio.sleep(0)
    assert [(await log.find(each.id))["id"] for each in made] == [each.id for each in made]
    newest = sorted((each.id for each in made), reverse=True)
    assert [record["id"] for record in await log.recent(5)] == newest[:5]
    for writer in writers:
        await writer.close()
    assert [event.kind for event in audit.events] == ["decisions.segment_closed"] * 2


async def test_what_a_worker_left_open_is_closed_unless_it_still_writes(
    log: DecisionLog, where: DecisionLogSettings, audit: Audit
) -> None:
    gone, alive = (worker_folder(where.directory, number) for number in (0, 1))
    for folder in (gone, alive):
        folder.mkdir(mode=0o700)
        (folder / f"{log.ids()}.jsonl").write_bytes(encode(entry(log), b""))
    lock = take_lock(alive)
    closer = SegmentCloser(where, audit)
    await closer.mend_workers()
    await closer.finish()
    os.close(lock)
    assert [path.suffix for path in segment_paths(gone)] == [".gz"]
    assert [path.suffix for path in segment_paths(alive)] == [".jsonl"]


async def test_an_audit_log_that_fails_leaves_the_segment_for_the_next_start(
    where: DecisionLogSettings, audit: Audit
) -> None:
    class Failing(Audit):
        async def append(self, event: AuditEvent) -> int:
            raise Fault(Reason.AUDIT_FAILED)

    log = await DecisionLog.open(where, ManualClock(), SegmentCloser(where, Failing()))
    log.record(entry(log))
    await log.close()
    assert [path.suffix for path in segment_paths(where.directory)] == [".jsonl"]
    await (await DecisionLog.open(where, ManualClock(), SegmentCloser(where, audit))).close()
    assert [event.kind for event in audit.events] == ["decisions.segment_closed"]


texts = st.text(max_size=200)


@given(identity=texts, route=texts, method=texts, target=texts, grant=texts)
def test_any_text_makes_one_line_of_json(**values: str) -> None:
    made = DecisionEntry("d-" + "0" * 28, 0.0, False, ("no_grant",), numbers=SnapshotNumbers(0, 0, 0, 0), **values)
    line = encode(made, b"")
    assert line.count(b"\n") == 1
    assert {name: json.loads(line)[name] for name in values} == values


def test_ids_rise_even_when_the_clock_goes_back() -> None:
    clock = ManualClock()
    ids = DecisionIds(clock)
    made = []
    for n in range(1000):
        clock.set_wall(1_800_000_000 - (n % 7))
        made.append(ids())
    assert made == sorted(set(made))
    assert all(map(is_decision_id, made))
    assert DecisionIds(clock, after="d-" + "f" * 27 + "0")() == "d-" + "f" * 27 + "1"

"""A closed segment: one gzip file to everybody, blocks to who looks one decision up, and an index that is no record."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import stat
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.decisionlog import blocks
from foundation.decisionlog import find as finder
from foundation.decisionlog.blocks import INDEX_SUFFIX, index_path, read_block, read_index, rebuild_index, text_id
from foundation.decisionlog.line import encode, with_cut, with_input
from foundation.decisionlog.segments import compress, facts, mend, segment_paths
from foundation.faults import Fault
from foundation.identity import SnapshotNumbers
from foundation.ports import DecisionEntry
from foundation.reasons import Reason
from tests.support.decisions import read_segment


def made_id(number: int) -> str:
    return f"d-{number:028x}"


def line(number: int, *, padding: int = 0, cut: str = "", labels: str = "{}") -> bytes:
    entry = DecisionEntry(
        made_id(number),
        1.0,
        True,
        ("granted",),
        "spiffe://f/node/n",
        "r",
        "GET",
        "/x",
        "g",
        SnapshotNumbers(1, 2, 3, 4),
    )
    document = b'{"labels":%s,"x":"%s"}' % (labels.encode(), b"y" * padding)
    return encode(entry, with_input(document) + (with_cut(cut) if cut else b""))


def closed(folder: Path, lines: list[bytes], first: int) -> Path:
    path = folder / f"{made_id(first)}.jsonl"
    path.write_bytes(b"".join(lines))
    return compress(path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MIN_BLOCK_BYTES", 600)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_found_and_no_other(
    small_blocks: None, tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    """IDs in the order of time, but for some that are recorded late; lines from short to longer than a block."""
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("log")
    numbers = [100 + 2 * place for place in range(count)]
    for place in range(0, count - 3, 7):
        numbers[place], numbers[place + 3] = numbers[place + 3], numbers[place]
    lines = [line(number, padding=chance.choice((0, 10, 700))) for number in numbers]
    path = closed(folder, lines, numbers[0])
    assert read_segment(path) == gzip.decompress(path.read_bytes()) == b"".join(lines)
    assert read_index(path) == rebuild_index(path)
    for number in numbers:
        assert finder.find(folder, made_id(number))["id"] == made_id(number)
        with pytest.raises(Fault):
            finder.find(folder, made_id(number + 1))
    newest = [record["id"] for record in finder.recent(folder, 7)]
    assert newest == sorted(map(made_id, numbers[-7:]), reverse=True)


def test_a_look_up_reads_one_block(small_blocks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = closed(tmp_path, [line(number, padding=100) for number in range(200)], 0)
    read: list[int] = []

    def count(segment: Path, block: blocks.Block) -> bytes:
        read.append(block.length)
        return read_block(segment, block)

    monkeypatch.setattr(finder, "read_block", count)
    assert len(read_index(path).blocks) > 30
    finder.find(tmp_path, made_id(77))
    assert len(read) == 1


def test_the_number_of_blocks_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MIN_BLOCK_BYTES", 1)
    monkeypatch.setattr(blocks, "MAX_BLOCKS", 8)
    path = closed(tmp_path, [line(number) for number in range(500)], 0)
    assert len(read_index(path).blocks) <= 10


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "other file", "foreign"])
def test_an_index_that_is_not_of_the_file_is_made_anew(small_blocks: None, tmp_path: Path, damage: str) -> None:
    path = closed(tmp_path, [line(number) for number in range(50)], 0)
    index, good = index_path(path), index_path(path).read_bytes()
    if damage == "missing":
        index.unlink()
    elif damage == "other file":
        other = tmp_path / "other"
        other.mkdir()
        index.write_bytes(index_path(closed(other, [line(number) for number in range(9)], 0)).read_bytes())
    else:
        wrong = {"empty": b"", "cut": good[:-40], "flipped": good[:30] + b"\xff" + good[31:], "foreign": b"x" * 500}
        index.write_bytes(wrong[damage])
    assert finder.find(tmp_path, made_id(41))["id"] == made_id(41)
    assert index.read_bytes() == good
    assert stat.S_IMODE(index.stat().st_mode) == 0o600


def test_a_segment_of_one_block_without_index_is_read_too(tmp_path: Path) -> None:
    """As written before there were blocks."""
    lines = b"".join(line(number) for number in range(50))
    (tmp_path / f"{made_id(0)}.jsonl.gz").write_bytes(gzip.compress(lines))
    assert finder.find(tmp_path, made_id(49))["id"] == made_id(49)
    assert len(read_index(segment_paths(tmp_path)[0]).blocks) == 1


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_damaged_segment_is_a_fault(small_blocks: None, tmp_path: Path, kept: float) -> None:
    path = closed(tmp_path, [line(number) for number in range(50)], 0)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept)] + b"\0" * 20)
    with pytest.raises(Fault) as caught:
        finder.find(tmp_path, made_id(49))
    assert caught.value.reason is Reason.FILE_UNREADABLE


def test_the_digest_is_that_of_the_lines(small_blocks: None, tmp_path: Path) -> None:
    lines = [line(number) for number in range(50)]
    path = closed(tmp_path, lines, 0)
    found = facts(path)
    assert found.sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
    assert (found.first, found.last, found.count) == (made_id(0), made_id(49), 50)
    assert found.size == len(b"".join(lines))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_large_segment_is_read_piece_by_piece(suffix: str, tmp_path: Path) -> None:
    """What a thread has once held, the allocator keeps for it."""
    lines = b"".join(line(number, padding=500) for number in range(8000))
    path = tmp_path / f"{made_id(0)}{suffix}"
    path.write_bytes(gzip.compress(lines + b"torn") if suffix.endswith("gz") else lines + b"torn")
    tracemalloc.start()
    try:
        found = facts(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.last, found.count, found.size) == (made_id(7999), 8000, len(lines))
    assert peak < len(lines) / 8


def test_the_end_of_a_stream_is_found_from_its_permit(small_blocks: None, tmp_path: Path) -> None:
    """In its own segment, in a later one, and in the one that grows; a text of the client's is no such end."""
    closed(tmp_path, [line(0), line(1), line(2, cut=made_id(0)), *(line(number) for number in range(3, 40))], 0)
    trap = line(40, labels=json.dumps({"cut": made_id(3)}))
    closed(tmp_path, [trap, *(line(number) for number in range(41, 80)), line(80, cut=made_id(1))], 40)
    (tmp_path / f"{made_id(90)}.jsonl").write_bytes(line(90) + line(91, cut=made_id(41)))
    for permit, by in ((0, 2), (1, 80), (41, 91)):
        found = finder.find_cut(tmp_path, made_id(permit))
        assert found is not None
        assert (found["id"], found["cut"]) == (made_id(by), made_id(permit))
    assert finder.find_cut(tmp_path, made_id(3)) is None
    assert [text_id(cut.decision) for path in segment_paths(tmp_path)[:2] for cut in read_index(path).cuts] == [
        made_id(2),
        made_id(80),
    ]


def test_mending_leaves_no_index_without_its_segment(tmp_path: Path) -> None:
    path = closed(tmp_path, [line(0)], 0)
    (tmp_path / f"{made_id(7)}{INDEX_SUFFIX}").write_bytes(b"left behind")
    mend(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, index_path(path).name])


def test_facts_of_a_segment_are_the_same_open_and_closed(tmp_path: Path, small_blocks: None) -> None:
    lines = [line(number, padding=number) for number in range(1, 40)]
    growing = tmp_path / f"{made_id(1)}.jsonl"
    growing.write_bytes(b"".join(lines) + b'{"id":"d-torn')
    found = facts(growing)
    assert (found.first, found.last, found.count) == (made_id(1), made_id(39), 39)
    assert found.sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
    (tmp_path / "closed").mkdir()
    assert facts(closed(tmp_path / "closed", lines, 1)) == found


def test_long_work_rests_after_each_block(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / f"{made_id(1)}.jsonl"
    path.write_bytes(b"".join(line(number, padding=40_000) for number in range(1, 9)))
    rests: list[int] = []
    facts(path, lambda: rests.append(1))
    assert len(rests) >= 4
    compress(path, lambda: rests.append(1))
    assert len(rests) >= 8

"""What a node notes reaches the authority in order and exactly once, through kills, lost answers and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import record_files
from agent.outbox import STATE, Outbox, OutboxSettings
from agent.record_files import RecordFiles
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from foundation.wire.records import Receipt, RecordBatch, RecordKind
from tests.fakes.clock import ManualClock
from tests.support.installation import Installation, installation
from tests.support.site import Site, open_site

SMALL = OutboxSettings(max_bytes=1 << 20)


class Taking:
    """A real authority's taking of records, for outboxes that deliver from threads. Faults to come are in `faults`: one
    of `before` (nothing arrives) or `after` (the answer is lost)."""

    def __init__(self, site: Site, node: SpiffeId) -> None:
        self.site, self.node = site, node
        self.faults: list[str] = []
        self.batches: list[RecordBatch] = []
        self._loop = asyncio.get_running_loop()

    def deliver(self, batch: RecordBatch) -> Receipt:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise Fault(Reason.SERVER_UNREACHABLE)
        self.batches.append(batch)
        taking = self.site.authority.node_records.take(self.node, RecordBatch.parse(batch.encode()))
        receipt = asyncio.run_coroutine_threadsafe(taking, self._loop).result()
        if fault == "after":
            raise Fault(Reason.SERVER_UNREACHABLE)
        return receipt

    async def bodies(self) -> list[dict[str, Any]]:
        page = await self.site.authority.node_records.page(self.node, limit=1000)
        return [dict(each.record.body) for each in page]

    async def numbers(self) -> list[int]:
        return [body["n"] for body in await self.bodies() if "n" in body]


@pytest.fixture
async def taking(tmp_path: Path) -> Any:
    async with open_site(tmp_path / "site") as site:
        yield Taking(site, await site.expect("edge-1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


def opened(folder: Path, settings: OutboxSettings = SMALL) -> Outbox:
    return Outbox.open(folder, ManualClock(), settings, draw=lambda least, most: most)


def note(outbox: Outbox, *numbers: int, kind: RecordKind = RecordKind.DECISION) -> list[int]:
    """Those of `numbers` that were kept."""
    return [n for n in numbers if outbox.add(kind, {"n": n})]


def put_back(files: dict[Path, bytes]) -> None:
    for path, content in files.items():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(content)


async def test_records_arrive_in_order(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    note(outbox, *range(1, 700))
    assert outbox.waiting == 699
    await outbox.deliver_all(taking.deliver)
    assert await taking.numbers() == list(range(1, 700))
    assert outbox.waiting == 0
    assert not list(folder.glob("*/*.log"))  # what was delivered takes no disk


async def test_what_is_added_meanwhile_follows(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    for n in range(5):
        note(outbox, n)
        await outbox.deliver_all(taking.deliver)
    assert await taking.numbers() == [0, 1, 2, 3, 4]
    outbox.close()
    again = opened(folder)
    note(again, 5)
    await again.deliver_all(taking.deliver)
    assert await taking.bodies() == [{"n": n} for n in range(6)]


@pytest.mark.parametrize("seed", range(6))
async def test_lost_messages_and_lost_answers_cost_nothing(taking: Taking, folder: Path, seed: int) -> None:
    lots, outbox, n = random.Random(seed), opened(folder), 0
    for _ in range(30):
        n += len(note(outbox, *range(n, n + lots.randint(0, 5))))
        taking.faults = [lots.choice(["", "before", "after"])]
        with contextlib.suppress(Fault):
            await outbox.deliver_all(taking.deliver)
        if lots.random() < 0.3:
            outbox.close()
            outbox = opened(folder)
    taking.faults = []
    await outbox.deliver_all(taking.deliver)
    assert await taking.numbers() == list(range(n))


@pytest.mark.parametrize("seed", range(6))
async def test_a_crash_at_any_place_costs_nothing(taking: Taking, folder: Path, seed: int) -> None:
    """The process goes without a word: files stay as they were when it went, the state perhaps older than they are."""
    lots, n = random.Random(seed), 0
    for _ in range(12):
        outbox = opened(folder)
        state = (folder / STATE).read_bytes()
        count = lots.randint(0, 40)
        note(outbox, *range(n, n + count))
        n += count
        taking.faults = lots.choices(["", "after"], k=3)
        with contextlib.suppress(Fault):
            await outbox.deliver_all(taking.deliver)
        if lots.random() < 0.5 and outbox.waiting:  # it had not come to writing what the receipt said
            (folder / STATE).write_bytes(state)
    outbox, taking.faults = opened(folder), []
    await outbox.deliver_all(taking.deliver)
    assert await taking.numbers() == list(range(n))
    gaps = [body for body in await taking.bodies() if body.get("unclean")]
    assert len(gaps) == 12


async def test_a_torn_tail_is_cut_and_told(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    note(outbox, 1, 2, 3)
    (path,) = folder.glob("*/*.log")
    os.truncate(path, path.stat().st_size - 5)
    again = opened(folder)
    note(again, 4)
    await again.deliver_all(taking.deliver)
    bodies = await taking.bodies()
    assert [body.get("n") for body in bodies] == [1, 2, None, 4]
    assert bodies[2]["unclean"] is True
    assert bodies[2]["cut_bytes"] > 0


async def test_a_damaged_record_is_not_delivered_as_another(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    note(outbox, 1, 2, 3)
    (path,) = folder.glob("*/*.log")
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":9'))
    again = opened(folder)
    await again.deliver_all(taking.deliver)
    assert await taking.numbers() == [1]


async def test_a_disk_that_was_put_back_begins_another_incarnation(
    taking: Taking, folder: Path, tmp_path: Path
) -> None:
    outbox = opened(folder)
    note(outbox, 1, 2)
    await outbox.deliver_all(taking.deliver)
    outbox.close()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outbox = opened(folder)
    note(outbox, 3, 4)
    await outbox.deliver_all(taking.deliver)
    outbox.close()
    put_back(before)
    restored = opened(folder)
    note(restored, 30, 40, 50)
    await restored.deliver_all(taking.deliver)
    bodies = await taking.bodies()
    assert [body["n"] for body in bodies if "n" in body] == [1, 2, 3, 4, 30, 40, 50]
    assert any("history" in body for body in bodies)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


async def test_the_same_numbers_put_back_are_no_second_delivery(taking: Taking, folder: Path) -> None:
    """A history that the authority has is recognised by its hash, and not delivered again."""
    outbox = opened(folder)
    note(outbox, 1, 2, 3)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    await outbox.deliver_all(taking.deliver)
    put_back(files)
    again = opened(folder)
    await again.deliver_all(taking.deliver)
    assert await taking.numbers() == [1, 2, 3]


async def test_a_receipt_of_more_than_was_sent_is_held_against_the_files(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    note(outbox, *range(600))  # two batches
    state = (folder / STATE).read_bytes()
    outbox._files.drop = lambda through: None  # type: ignore[method-assign]
    await outbox.deliver_all(taking.deliver)
    (folder / STATE).write_bytes(state)
    again = opened(folder)
    await again.deliver_all(taking.deliver)
    assert await taking.numbers() == list(range(600))


async def test_a_state_that_cannot_be_read_keeps_no_node_down(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    note(outbox, 1)
    (folder / STATE).write_text("{")
    again = opened(folder)
    note(again, 2)
    await again.deliver_all(taking.deliver)
    assert await taking.bodies() == [{"state": "unreadable"}, {"n": 2}]


# --- space ---------------------------------------------------------------------------------------------------


def fill(outbox: Outbox, kind: RecordKind, most: int = 10_000) -> int:
    """How many records of a kilobyte it takes."""
    for count in range(most):
        if not outbox.add(kind, {"padding": "x" * 1000}):
            return count
    return most


async def test_the_disk_is_bounded_and_what_is_dropped_is_told(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    health, decisions, audit = (
        fill(outbox, kind) for kind in (RecordKind.HEALTH, RecordKind.DECISION, RecordKind.AUDIT)
    )
    assert 400 < health < 600
    assert 150 < decisions < 300
    assert 150 < audit < 300
    assert note(outbox, 1, 2) == []
    assert sum(path.stat().st_size for path in folder.rglob("*.log")) <= SMALL.max_bytes
    await outbox.deliver_all(taking.deliver)
    assert note(outbox, 3) == [3]
    await outbox.deliver_all(taking.deliver)
    *_, gap, last = await taking.bodies()
    assert gap["dropped"] == {"health": 1, "decision": 3, "audit": 1}
    assert last == {"n": 3}


async def test_an_end_in_order_tells_what_was_dropped_before(taking: Taking, folder: Path) -> None:
    outbox = opened(folder)
    fill(outbox, RecordKind.HEALTH)
    await outbox.deliver_all(taking.deliver)
    outbox.close()
    again = opened(folder)
    await again.deliver_all(taking.deliver)
    assert (await taking.bodies())[-1]["dropped"] == {"health": 1}


async def test_a_full_disk_drops_counts_and_goes_on(
    taking: Taking, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(folder)
    note(outbox, 1)
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: len(data) // 2])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    for failing in (short, full):
        monkeypatch.setattr(record_files.os, "write", failing)
        assert note(outbox, 2, 3) == []
    monkeypatch.setattr(record_files.os, "write", real)
    assert note(outbox, 4) == [4]
    await outbox.deliver_all(taking.deliver)
    first, gap, last = await taking.bodies()
    assert (first, last) == ({"n": 1}, {"n": 4})
    assert gap["dropped"] == {"decision": 4}


def test_what_is_no_record_is_refused_and_takes_no_number(folder: Path) -> None:
    outbox = opened(folder)
    with pytest.raises(Fault):
        outbox.add(RecordKind.AUDIT, {"x": float("nan")})
    assert outbox.waiting == 0


# --- running ---------------------------------------------------------------------------------------------------


async def test_it_delivers_at_its_pace_and_waits_longer_each_time_nobody_answers(taking: Taking, folder: Path) -> None:
    clock = ManualClock()
    outbox = Outbox.open(folder, clock, SMALL, draw=lambda least, most: most)
    task = asyncio.create_task(outbox.run(taking.deliver))
    tried: list[float] = []

    def refuse(batch: RecordBatch) -> Receipt:
        tried.append(clock.monotonic())
        raise Fault(Reason.SERVER_UNREACHABLE)

    async def until(done: Any) -> None:
        while not done():
            clock.advance(0.5)
            await asyncio.sleep(0.001)

    try:
        note(outbox, 1)
        await until(lambda: outbox.waiting == 0)
        assert clock.monotonic() >= 30
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    task = asyncio.create_task(outbox.run(refuse))
    try:
        note(outbox, 2)
        await until(lambda: len(tried) == 6)
        pauses = [later - sooner for sooner, later in itertools.pairwise(tried)]
        assert all(pause >= 2**i for i, pause in enumerate(pauses))
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await outbox.deliver_all(taking.deliver)
    assert await taking.numbers() == [1, 2]


@pytest.mark.parametrize("section", [{"max_bytes": "1KiB"}, {"every": "0s"}, {"more": 1}])
def test_settings_that_are_none(section: dict[str, object]) -> None:
    with pytest.raises(Fault):
        OutboxSettings.parse(Fields(section, "agent.outbox", Reason.SETTING_INVALID))


# --- files ------------------------------------------------------------------------------------------------------


def test_lines_are_read_from_any_number_on(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path / "files", 10)
    for i in range(300):
        files.append(f"{i:04d}".encode() * 400)
    assert files.read(10, 5, 1 << 20) == ()  # nothing is on disk yet
    assert files.sync() == 310
    assert len(list((tmp_path / "files").iterdir())) > 3
    assert [line[:4] for line in files.read(250, 3, 1 << 20)] == [b"0240", b"0241", b"0242"]
    assert len(files.read(10, 500, 5000)) == 3
    files.drop(309)
    assert [line[:4] for line in files.read(309, 9, 1 << 20)] == [b"0299"]
    files.close()
    again = RecordFiles(tmp_path / "files", 309)
    assert (again.last, again.cut) == (310, 0)


# --- killed ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(site: Installation, folder: Path, address: Any, first: int, count: int) -> Iterator[Any]:
    pair = site.folder / "node-edge-1"
    words = [folder, f"localhost:{address.port}", f"{pair}.pem", f"{pair}.key", site.settings.folder / "root.pem"]
    yield [sys.executable, "-m", "tests.support.outbox_process", *map(str, words), str(first), str(count)]


async def test_kill_9_between_append_and_receipt(tmp_path: Path) -> None:
    """Twelve processes, one after the other, killed while they add and deliver; what `add` took arrives, once."""
    lots, folder = random.Random(5), tmp_path / "outbox"
    added: list[int] = []
    async with installation(tmp_path / "site") as site:
        await site.certify("edge-1", Kind.NODE)
        async with site.serving() as address:
            for turn in range(12):
                with process(site, folder, address, turn * 10_000, 10_000) as command:
                    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
                    assert running.stdout is not None
                    for _ in range(lots.randint(1, 60)):
                        added.append(int(await running.stdout.readline()))
                    running.send_signal(signal.SIGKILL)
                    added += [int(line) for line in (await running.stdout.read()).split(b"\n")[:-1]]
                    await running.wait()
            with process(site, folder, address, 0, 0) as command:
                assert await (await asyncio.create_subprocess_exec(*command)).wait() == 0
        numbers: list[int] = []
        after = 0
        while page := await site.authority.node_records.page(site.id("edge-1"), after=after, limit=1000):
            numbers += [each.record.body["n"] for each in page if "n" in each.record.body]
            after = page[-1].number
    assert numbers == sorted(set(numbers))
    assert set(added) <= set(numbers)

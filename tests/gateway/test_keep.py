"""What a gateway keeps on disk: all of it comes back, a torn end does not matter, other damage is not believed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identity import (
    Change,
    Heartbeat,
    IdentityChanged,
    PolicyPublished,
    PostureChanged,
    Revocation,
    SnapshotNumbers,
)
from foundation.reasons import Reason
from gateway import keep
from gateway.keep import SYNC_SECONDS, KeptFacts
from gateway.snapshot import SnapshotStore
from tests.fakes.clock import ManualClock
from tests.fakes.trust import HARDWARE, record, spiffe

BEAT = Heartbeat(1_800_000_000.0, SnapshotNumbers(1, 2, 3, 4))
FACTS: list[Change] = [
    PolicyPublished(1, b"first"),
    Revocation(1, spiffe("n3"), "", "key_compromise", 5.0),
    Revocation(2, spiffe("n4"), "0a", "key_compromise", 5.0),
    PostureChanged(3, spiffe("n1"), HARDWARE, 7.5),
    IdentityChanged(4, record("n1")),
    PolicyPublished(2, b"second"),
    BEAT,
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "facts"


def open_kept(path: Path, store: SnapshotStore | None = None, clock: ManualClock | None = None) -> KeptFacts:
    return KeptFacts(path, (store or SnapshotStore()).present, clock or ManualClock())


def size(path: Path) -> int:
    """Of the file, in bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def killed(path: Path, changes: list[Change]) -> None:
    """A process kept `changes` and was killed: nothing was closed or rewritten."""
    kept = open_kept(path)
    kept.recall()
    for change in changes:
        kept.keep(change)
    kept.close()


def test_what_was_kept_is_recalled_with_the_newest_revision_first(path: Path) -> None:
    assert open_kept(path).recall() == ()
    killed(path, FACTS)
    recalled = open_kept(path).recall()
    assert recalled[0] == FACTS[5]
    assert list(recalled[1:]) == [change for change in FACTS if not isinstance(change, PolicyPublished)]
    assert mode(path) == 0o600


@given(cut=st.integers(1, 60))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_torn_end_costs_the_last_line_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / f"facts-{cut}"
    path.unlink(missing_ok=True)
    killed(path, [*FACTS, Heartbeat(9.0, BEAT.numbers)])
    os.truncate(path, size(path) - cut)
    assert open_kept(path).recall()[-1] == BEAT
    killed(path, [Revocation(3, spiffe("n1"), "", "unspecified", 6.0)])
    assert isinstance(open_kept(path).recall()[-1], Revocation)


@pytest.mark.parametrize("damage", ["a line", "its mode", "its size", "a link"])
def test_other_damage_is_not_believed(path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(path, FACTS)
    if damage == "a line":
        path.write_bytes(path.read_bytes().replace(b'"key_compromise"', b'"key_compromise'))
    elif damage == "its mode":
        path.chmod(0o644)
    elif damage == "its size":
        monkeypatch.setattr(keep, "MAX_BYTES", 100)
    else:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    kept = open_kept(path)
    with pytest.raises(Fault) as caught:
        kept.recall()
    assert caught.value.reason in {Reason.MESSAGE_MALFORMED, Reason.FILE_MODE_UNSAFE, Reason.FILE_UNREADABLE}
    kept.keep(BEAT)  # and it begins anew
    monkeypatch.undo()
    assert open_kept(path).recall() == (BEAT,)


@asynccontextmanager
async def running(kept: KeptFacts, clock: ManualClock) -> AsyncIterator[Any]:
    """`kept.run` at work; the value lets it tend the file once."""
    task = asyncio.create_task(kept.run())

    async def tend() -> None:
        await asyncio.sleep(0)
        clock.advance(SYNC_SECONDS)
        for _ in range(200):
            await asyncio.sleep(0.001)  # threads do the writing
            if not clock._sleepers:
                continue
            break

    try:
        yield tend
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_past_is_rewritten_to_what_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "SLACK_BYTES", 1000)
    clock, store = ManualClock(), SnapshotStore()
    kept = open_kept(path, store, clock)
    kept.recall()
    for change in FACTS:
        if not isinstance(change, PolicyPublished):
            store.apply(change)
        kept.keep(change)
    for moved in range(200):
        change = PostureChanged(3, spiffe("n1"), HARDWARE, 100.0 + moved)
        store.apply(change)
        kept.keep(change)
    before = size(path)
    async with running(kept, clock) as tend:
        await tend()
        assert size(path) < before / 10
        kept.keep(Revocation(5, spiffe("n1"), "", "unspecified", 6.0))
    again = SnapshotStore()
    policy, *facts = open_kept(path).recall()
    assert policy == PolicyPublished(2, b"second")
    for change in facts:
        again.apply(change)
    store.apply(Revocation(5, spiffe("n1"), "", "unspecified", 6.0))
    assert again.current == store.current
    assert again.attested_until(spiffe("n1")) == 299.0
    assert again.heartbeat_at == BEAT.at
    assert mode(path) == 0o600


async def test_a_change_during_the_rewriting_is_not_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "SLACK_BYTES", 0)
    clock, store = ManualClock(), SnapshotStore()
    kept = open_kept(path, store, clock)
    kept.recall()
    kept.keep(FACTS[3])
    late = Revocation(9, spiffe("n1"), "", "unspecified", 6.0)
    whole = keep._write

    def write(*given: Any) -> Any:
        loop.call_soon_threadsafe(kept.keep, late)
        written = whole(*given)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        return written

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(keep, "_write", write)
    async with running(kept, clock) as tend:
        await tend()
    assert late in open_kept(path).recall()


async def test_a_full_disk_costs_the_file_and_not_the_gateway(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = ManualClock(), SnapshotStore()
    kept = open_kept(path, store, clock)
    kept.recall()
    store.apply(BEAT)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: len(data) - 1)
        kept.keep(BEAT)
        assert size(path) == 0
        kept.keep(BEAT)
    async with running(kept, clock) as tend:
        await tend()
    assert open_kept(path).recall() == (Heartbeat(BEAT.at, SnapshotNumbers(0, 0, 0, 0)),)

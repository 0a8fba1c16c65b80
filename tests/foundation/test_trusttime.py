"""Trust time never goes back."""

from __future__ import annotations

import asyncio
import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.files import read_secret, write_secret
from foundation.reasons import Reason
from foundation.trusttime import JUMP, PERSIST_EVERY, TrustTime
from tests.fakes.clock import ManualClock

START = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "floor"


def test_it_follows_the_wall_clock(path: Path) -> None:
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)
    clock.advance(10)
    assert (time.now(), time.behind) == (START + 10, 0)


def test_a_wall_clock_set_back_changes_nothing(path: Path) -> None:
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)
    clock.set_wall(START - 1000)
    assert time.now() == START
    clock.advance(7)
    assert (time.now(), time.behind) == (START + 7, 1000)


def test_the_floor_outlives_a_restart(path: Path) -> None:
    TrustTime.open(path, ManualClock(START)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = TrustTime.open(path, ManualClock(0))
    assert again.now() == START


def test_the_authoritys_heartbeat_counts(path: Path) -> None:
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)
    time.heard(START + 100)
    clock.advance(1)
    assert time.now() == START + 101
    time.heard(START)
    assert time.now() == START + 101


def test_a_jump_forward_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)
    with caplog.at_level(logging.WARNING):
        clock.advance(10 * JUMP)
        time.now()
        assert not caplog.records
        clock.set_wall(clock.now() + 2 * JUMP)
        time.now()
        time.now()
    assert [record.message for record in caplog.records] == ["the wall clock jumped forward"]


async def test_it_is_persisted_now_and_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)
    loop, written = asyncio.get_running_loop(), asyncio.Event()

    def write(target: Path, data: bytes) -> None:
        write_secret(target, data)
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr("foundation.trusttime.write_secret", write)
    task = asyncio.create_task(time.run())
    await asyncio.sleep(0)
    clock.advance(PERSIST_EVERY)
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert float(read_secret(path)) == START + PERSIST_EVERY


def test_threads_may_ask_at_once(path: Path) -> None:
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)

    def ask(seed: int) -> bool:
        seen = [0.0]
        for n in range(500):
            if n % 7 == seed:
                time.heard(START + n)
            seen.append(time.now())
        return seen == sorted(seen)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(4)))


@pytest.mark.parametrize("content", [b"", b"yesterday", b"nan", b"inf", b"-1", b"1" * 100])
def test_a_broken_floor_is_not_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Fault) as caught:
        TrustTime.open(path, ManualClock(START))
    assert caught.value.reason is Reason.FILE_UNREADABLE


steps = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.floats(0, 1e6)),
        st.tuples(st.just("set_wall"), st.floats(0, 4e9)),
        st.tuples(st.just("heard"), st.floats(0, 4e9)),
        st.tuples(st.just("restart"), st.just(0.0)),
    ),
    max_size=20,
)


@given(steps=steps)
def test_whatever_happens_it_does_not_go_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("time") / "floor"
    clock = ManualClock(START)
    time = TrustTime.open(path, clock)
    last = 0.0
    for name, value in steps:
        if name == "restart":
            time.close()
            time = TrustTime.open(path, clock)
            last -= 0.001  # milliseconds are kept
        else:
            getattr(time if name == "heard" else clock, name)(value)
        now = time.now()
        assert now >= last
        last = now

"""What the service manager hears of an agent that is well, and of one that is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.watchdog import Watchdog, WatchedClock, unwell_parts
from foundation import notify
from tests.fakes.clock import ManualClock


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield listening


def heard(manager: socket.socket) -> list[str]:
    told = []
    with contextlib.suppress(BlockingIOError):
        while True:
            told.append(manager.recv(1000).decode())
    return told


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_it_is_heard_twice_in_the_time_allowed_while_every_part_is_well(manager: socket.socket) -> None:
    clock, well = ManualClock(), {"tunnels": True}
    watchdog = Watchdog({"tunnels": lambda: well["tunnels"]}, lambda: "2 of 2\ngateways", clock)
    task = asyncio.create_task(watchdog.run())
    await turn()
    assert heard(manager) == ["READY=1", "STATUS=2 of 2 gateways", "WATCHDOG=1"]
    clock.advance(9.9)
    await turn()
    assert heard(manager) == []
    clock.advance(0.2)
    await turn()
    assert "WATCHDOG=1" in heard(manager)

    well["tunnels"] = False
    clock.advance(10)
    await turn()
    assert heard(manager) == ["STATUS=not well: tunnels"]
    well["tunnels"] = True
    clock.advance(10)
    await turn()
    assert "WATCHDOG=1" in heard(manager)

    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert heard(manager) == ["STOPPING=1"]


async def test_a_part_is_well_while_it_comes_back_to_wait() -> None:
    clock = ManualClock()
    watched = WatchedClock(clock, patience=10)
    work = asyncio.Event()

    async def part() -> None:
        while True:
            await watched.sleep(60)
            await work.wait()

    task = asyncio.create_task(part())
    await turn()
    clock.advance(69)
    await turn()
    assert watched.is_well()
    clock.advance(1.5)
    assert not watched.is_well()  # it waited for 60 s, and hangs for more than 10
    work.set()
    await turn()
    assert watched.is_well()
    assert (watched.now(), watched.monotonic()) == (clock.now(), clock.monotonic())
    task.cancel()


def test_a_part_that_never_waits_is_not_well_for_long() -> None:
    clock = ManualClock()
    watched = WatchedClock(clock, patience=10)
    clock.advance(10)
    assert watched.is_well()
    clock.advance(0.1)
    assert not watched.is_well()


def test_who_is_not_well_is_named_in_order() -> None:
    assert unwell_parts({"tpm": False, "renewal": True, "outbox": False}) == ("outbox", "tpm")


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("20000000", "", 20.0),
        ("20000000", "own", 20.0),
        ("20000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("soon", "", None),
    ],
)
def test_the_time_allowed_is_what_the_environment_says_to_this_process(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert notify.watchdog_seconds() == seconds

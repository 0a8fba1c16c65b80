"""The collector looks at everything once a minute, in between at young objects alone; free memory goes back then."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import weakref
from pathlib import Path

import pytest

from gateway.collecting import EVERYTHING_SECONDS, YOUNG_OBJECTS, collect_seldom
from tests.fakes.clock import ManualClock


class Ring:
    """An object that leads back to itself."""

    def __init__(self) -> None:
        self.itself = self


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_rings_are_found_once_a_minute_and_the_threshold_comes_back() -> None:
    before, clock = gc.get_threshold(), ManualClock()
    ring = weakref.ref(Ring())
    task = asyncio.create_task(collect_seldom(clock))
    await settle()
    assert gc.get_threshold()[0] == YOUNG_OBJECTS
    assert ring() is not None
    clock.advance(EVERYTHING_SECONDS)
    await settle()
    assert ring() is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gc.get_threshold() == before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library gives back by itself, or not")
async def test_what_is_free_goes_back_to_the_kernel() -> None:
    clock, megabytes = ManualClock(), 40
    task = asyncio.create_task(collect_seldom(clock))
    await settle()
    blocks = [b"x" * 100_000 for _ in range(megabytes * 10)]
    between = blocks[::40]  # what lives among them keeps the heap from shrinking
    del blocks
    before = resident()
    clock.advance(EVERYTHING_SECONDS)
    await settle()
    assert before - resident() > megabytes * 1_000_000 / 2
    assert len(between) == 10
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def resident() -> int:
    """Bytes of this process in memory (statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

"""The collector looks at everything once a minute, and in between at what is young alone."""

from __future__ import annotations

import asyncio
import gc
import weakref

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

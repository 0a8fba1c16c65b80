"""A clock that tests move by hand."""

from __future__ import annotations

import asyncio
import heapq


class ManualClock:
    """Implements `foundation.clock.Clock`. `advance` moves both clocks and wakes sleepers in order."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._counter = 0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self._counter += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._counter, future))
        await future

    def advance(self, seconds: float) -> None:
        """Move time forward and wake what is due."""
        self._now += seconds
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def set_wall(self, now: float) -> None:
        """Set the wall clock alone, as an administrator or an attacker would; backwards too."""
        self._now = now

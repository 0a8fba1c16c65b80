"""Time is injected: everything that waits or compares times is handed a `Clock`.

Times are seconds. `now` is seconds since the Unix epoch in UTC; `monotonic` has no epoch and
never goes back. Tests pass `tests.fakes.clock.ManualClock` and move it by hand.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a part may ask of time."""

    def now(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, for measuring durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait until `monotonic` has grown by `seconds`."""
        ...


class SystemClock:
    """The machine's clock. Each request asks it several times, so it adds no call of its own."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

"""How long requests wait for their turn: all that came together are handled in one turn of the event loop, one after
the other, and the last one waits for all before it."""

from __future__ import annotations

import asyncio

from foundation.clock import Clock


class Turns:
    """One event loop's turns, as far as anybody asks in them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: float | None = None

    def waited(self) -> float:
        """Seconds since the first who asked in this turn of the loop."""
        now, began = self._clock.monotonic(), self._began
        if began is not None:
            return now - began
        self._began = now
        asyncio.get_running_loop().call_soon(self._over)
        return 0.0

    def _over(self) -> None:
        self._began = None

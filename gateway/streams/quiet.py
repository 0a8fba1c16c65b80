"""Keeps the garbage collector away while streams are cut.

It stops everything while it looks through all that lives: with thousands of open streams for longer than it takes to
cut them (9 us each; with a collection in between, 140). Nearly all that is made meanwhile is freed without it. So it
waits, `QUIET_SECONDS` at most, which bounds what cycles can pile up.
"""

from __future__ import annotations

import asyncio
import gc

QUIET_SECONDS = 1.0


class Quiet:
    """One event loop's. Does nothing before `begin`, or while somebody else keeps the collector away."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on there is a loop that ends what `keep` begins."""
        self._loop = asyncio.get_running_loop()

    def keep(self) -> None:
        """No collection for a while."""
        if self._loop is None or self._again is not None or not gc.isenabled():
            return
        gc.disable()
        self._again = self._loop.call_later(QUIET_SECONDS, self.end)

    def end(self) -> None:
        """Collections may come."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
            gc.enable()

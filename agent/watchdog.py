"""Tells the service manager that this agent is well, for as long as it is.

Laws held here:
- `WATCHDOG=1` goes out from the agent's own event loop, so a loop that stands still sends none;
- it goes out only while every part says that it is well. What is not well is named in the log and in the unit's status,
  and the service manager ends and restarts the agent (`WatchdogSec=`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from foundation import notify
from foundation.clock import Clock

UNWATCHED_EVERY = 30.0
"""Seconds between two looks where no service manager watches: the status and the log are of use there too."""
PATIENCE_SECONDS = 300.0
"""Longer than a part is busy that is well: calls and the TPM have time-outs of their own, each far below."""
_log = logging.getLogger("sallyport.agent.watchdog")


class WatchedClock:
    """Implements `foundation.clock.Clock` for one part that waits by it, again and again: such a part is well while it
    comes back to wait within `patience` seconds of its last wait's end. One that hangs does not."""

    def __init__(self, clock: Clock, patience: float = PATIENCE_SECONDS) -> None:
        self._clock = clock
        self._patience = patience
        self._due = clock.monotonic() + patience

    def now(self) -> float:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        self._due = self._clock.monotonic() + seconds + self._patience
        await self._clock.sleep(seconds)

    def is_well(self) -> bool:
        return self._clock.monotonic() <= self._due


class Watchdog:
    """`parts` says of each part by its name whether it is well; `status` is one line for people."""

    def __init__(self, parts: Mapping[str, Callable[[], bool]], status: Callable[[], str], clock: Clock) -> None:
        self._parts = parts
        self._status = status
        self._clock = clock
        self._unwell: tuple[str, ...] = ()

    async def run(self) -> None:
        """Say `READY=1`, then tell how it is at half the time that the service manager allows, until cancelled."""
        allowed = notify.watchdog_seconds()
        every = allowed / 2 if allowed else UNWATCHED_EVERY
        notify.ready()
        try:
            while True:
                self._look()
                await self._clock.sleep(every)
        finally:
            notify.stopping()

    def _look(self) -> None:
        unwell = unwell_parts({name: is_well() for name, is_well in self._parts.items()})
        if unwell:
            notify.status(f"not well: {', '.join(unwell)}")
        else:
            notify.status(self._status())
            notify.alive()
        if unwell != self._unwell:
            _log.log(logging.ERROR if unwell else logging.INFO, "parts that are not well", extra={"parts": unwell})
            self._unwell = unwell


def unwell_parts(wellness: Mapping[str, bool]) -> tuple[str, ...]:
    """The names of the parts that are not well, in order."""
    return tuple(sorted(name for name, well in wellness.items() if not well))

"""Time that never goes back: what deadlines of trust are compared with.

It is the greatest of the wall clock, the authority's heartbeat and what was the time plus what the monotonic clock
counted since; a floor on disk carries it over restarts.

It protects against a wall clock that is set back, by an administrator, an attacker, NTP or an empty battery: what has
expired stays expired. It does not protect against a clock set forward: then trust ends early, which is the safe side,
and stays ended when the wall clock is corrected, until real time has caught up or an operator removes the floor's file;
so a jump forward is logged. Nor does it protect a machine that was off, whose clock was set back and whose floor's file
was removed or rolled back: the first heartbeat of the authority mends that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.files import read_secret, write_secret
from foundation.reasons import Reason

JUMP = 3600.0  # seconds forward in one step that are worth a warning
PERSIST_EVERY = 5.0
_MAX_BYTES = 64
_log = logging.getLogger(__name__)


class TrustTime:
    """Implements `foundation.clock.Clock` over another clock. Make one with `open`, keep `run` running, `close` it. One
    without a `path` is another process's, which keeps the floor: that one tells the time by `heard`."""

    def __init__(self, clock: Clock, path: Path | None, floor: float) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic  # asked several times a request: without a call of ours in between
        self._path = path
        self._guard = threading.Lock()  # threads that write logs ask for the time too
        self._time = max(clock.now(), floor)
        self._at = clock.monotonic()
        self._persisted = floor

    @classmethod
    def open(cls, path: Path, clock: Clock) -> TrustTime:
        """Trust time from the floor in `path`, which may be missing at first. Raises
        `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`; a floor that cannot be read is never taken for none."""
        try:
            floor = float(read_secret(path, max_bytes=_MAX_BYTES)) if path.exists() else 0.0
        except ValueError:
            floor = float("nan")
        if not 0 <= floor < float("inf"):
            raise Fault(Reason.FILE_UNREADABLE, "expected seconds since the Unix epoch", field=str(path))
        return cls(clock, path, floor)

    def now(self) -> float:
        return self._raise_to(0.0)

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    def heard(self, heartbeat: float) -> None:
        """Take in the authority's time, from a heartbeat that was authenticated. Seconds since the Unix epoch."""
        self._raise_to(heartbeat)

    @property
    def behind(self) -> float:
        """How many seconds the wall clock lags: 0 when it is right."""
        return self.now() - self._clock.now()

    async def run(self) -> None:
        """Keep the floor on disk, every few seconds, until cancelled. Raises `OSError` when it cannot be kept."""
        while True:
            await self._clock.sleep(PERSIST_EVERY)
            await asyncio.to_thread(self._persist)

    def close(self) -> None:
        """Write the floor a last time, once `run` has ended. Raises `OSError`."""
        self._persist()

    def _persist(self) -> None:
        floor = self.now()
        if self._path is not None and floor > self._persisted:
            write_secret(self._path, b"%.3f" % floor)
            self._persisted = floor

    def _raise_to(self, heard: float) -> float:
        with self._guard:
            at, wall = self._clock.monotonic(), self._clock.now()
            counted = self._time + at - self._at
            jump = wall - counted
            self._time = now = max(wall, counted, heard)
            self._at = at
        if jump > JUMP:
            _log.warning("the wall clock jumped forward", extra={"seconds": round(jump)})
        return now

"""Delivers health reports to the authority, and learns what time it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from foundation.clock import Clock


class AuthorityReports:
    """`report` hands one in and gives the authority's time, in seconds since the Unix epoch
    (`agent.authority.AuthorityApi.report`). It is called on threads."""

    def __init__(self, report: Callable[[bytes], float], clock: Clock) -> None:
        self._report = report
        self._clock = clock
        self._skew: float | None = None

    async def deliver(self, report: bytes) -> None:
        """Raises `Fault`, as `report` does."""
        sent = self._clock.now()
        at = await asyncio.to_thread(self._report, report)
        self._skew = (sent + self._clock.now()) / 2 - at

    def clock_skew(self) -> float | None:
        """By how many seconds our clock was ahead of the authority's at the last delivery, give or take half of what it
        took; None before the first."""
        return self._skew

"""Which gateways follow, and up to where each says that it enforces.

A revocation counts once the gateways have it in force; who asks for one is told which have not said so. That is kept in
memory: every gateway says it again with each change and every few seconds, so that a start knows it soon. Where several
processes serve one authority, each knows of those that report to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from foundation.clock import Clock
from foundation.identifiers import SpiffeId
from foundation.identity import SnapshotNumbers

FOLLOWS_SECONDS = 10.0  # who was not heard for longer is not waited for


@dataclass(frozen=True, slots=True)
class Behind:
    """A gateway that has not said that it enforces a revocation. `number` is the newest that it has; `heard` is when it
    last said so, in seconds since the Unix epoch, and 0 for one that has not been heard since our start."""

    gateway: SpiffeId
    number: int
    heard: float


@dataclass(frozen=True, slots=True)
class _Report:
    numbers: SnapshotNumbers
    heard: float
    at: float  # monotonic


class Presence:
    """What gateways reported, the newest of each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reports: dict[SpiffeId, _Report] = {}
        self._news = asyncio.Event()
        self.here: tuple[SpiffeId, ...] = ()  # gateways that stand in no inventory: this machine's own

    def report_here(self, gateway: SpiffeId, numbers: SnapshotNumbers) -> None:
        """The same of the gateway beside this authority."""
        if gateway not in self.here:
            self.here += (gateway,)
        self.report(gateway, numbers)

    def report(self, gateway: SpiffeId, numbers: SnapshotNumbers) -> None:
        """`gateway`, which is proven, has all of this in force."""
        self._reports[gateway] = _Report(numbers, self._clock.now(), self._clock.monotonic())
        self._news.set()

    def behind(self, number: int, gateways: Iterable[SpiffeId]) -> tuple[Behind, ...]:
        """Those of `gateways` that have not said that they enforce the revocations up to `number`."""
        return tuple(self._behind(each) for each in gateways if self._number(each) < number)

    async def wait(self, number: int, gateways: Iterable[SpiffeId], seconds: float) -> tuple[Behind, ...]:
        """The same, once everybody who follows has said so, or after `seconds`."""
        expected = tuple(gateways)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(self._follows(each.gateway) for each in self.behind(number, expected)):
                    self._news.clear()
                    await self._news.wait()
        return self.behind(number, expected)

    def _number(self, gateway: SpiffeId) -> int:
        found = self._reports.get(gateway)
        return found.numbers.revocations if found else 0

    def _behind(self, gateway: SpiffeId) -> Behind:
        found = self._reports.get(gateway)
        return Behind(gateway, self._number(gateway), found.heard if found else 0.0)

    def _follows(self, gateway: SpiffeId) -> bool:
        found = self._reports.get(gateway)
        return found is not None and self._clock.monotonic() - found.at <= FOLLOWS_SECONDS

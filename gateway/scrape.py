"""What `/metrics` shows: this process's metrics and every worker's, as if they were one.

Counters never go back: what a worker counted stays when it has ended. Of one that was killed, that is what it told at
the last scrape.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric

from gateway.merging import Merged, lasting, load, named


class Told(NamedTuple):
    """One worker's answer. `life` tells a worker from the one that has its number later."""

    number: int
    life: int
    answer: bytes


class Scrape:
    """Gathers on demand. `ask` gives every worker's answer; whoever is in no answer any more, nor in `living`, has
    ended."""

    def __init__(
        self,
        registry: CollectorRegistry,
        ask: Callable[[], Awaitable[Sequence[Told]]],
        living: Callable[[], set[int]],
    ) -> None:
        self._registry = registry
        self._ask = ask
        self._living = living
        self._last: dict[int, list[Metric]] = {}
        self._ended: list[Metric] = []

    async def gather(self) -> Merged:
        """The whole gateway's metrics now."""
        for told in await self._ask():
            self.farewell(told)
        ended = [life for life in self._last if life not in self._living()]
        for life in ended:
            self._ended = list(Merged([self._ended, lasting(self._last.pop(life))]).collect())
        return Merged([self._registry.collect(), self._ended, *self._last.values()])

    def farewell(self, told: Told) -> None:
        """What a worker has counted by now, which may be its last word."""
        self._last[told.life] = named(load(told.answer), f"worker-{told.number}")

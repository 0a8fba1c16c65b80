"""Which exchanges' permissions end when: a heap, from which nothing is taken before its time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from policies.model import FOREVER

if TYPE_CHECKING:
    from gateway.streams.registry import Exchange

_SLACK = 256


class Deadlines:
    """Deadlines of exchanges, in seconds since the Unix epoch. One that was moved stands here twice: the entry that no
    longer says an exchange's deadline is passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Exchange]] = []
        self._sequence = 0
        self._sweep_at = 2 * _SLACK

    def schedule(self, exchange: Exchange) -> None:
        """Expect `exchange` at its present deadline."""
        if exchange.deadline == FOREVER:
            return
        self._sequence += 1
        heapq.heappush(self._heap, (exchange.deadline, self._sequence, exchange))
        if len(self._heap) > self._sweep_at:
            self._sweep()

    def reached(self, now: float) -> Iterator[Exchange]:
        """Those whose deadline has come by `now`."""
        while self._heap and self._heap[0][0] <= now:
            deadline, _, exchange = heapq.heappop(self._heap)
            if exchange.open and exchange.deadline == deadline:
                yield exchange

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].open and entry[2].deadline == entry[0]]
        heapq.heapify(self._heap)
        self._sweep_at = 2 * len(self._heap) + _SLACK

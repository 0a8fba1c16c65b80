"""A token bucket: so much per second, and up to ten seconds' worth at once. Pure: the time is given."""

from __future__ import annotations

BURST_SECONDS = 10.0


class Bucket:
    """Fills at `rate` per second up to ten seconds' worth, where it begins."""

    __slots__ = ("_at", "_left", "_most", "_rate")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = self._left = rate * BURST_SECONDS
        self._at = now

    def spend(self, cost: float, now: float) -> bool:
        """Whether there was enough left at `now` (monotonic seconds)."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        self._left -= cost
        return self._left >= 0

    @property
    def left(self) -> float:
        """As of the last spending; below zero where that was too much."""
        return self._left

    def earn(self, amount: float) -> None:
        self._left = min(self._most, self._left + amount)

"""Which address of a pool takes the next request: the one with the least under way for its weight. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

SCANNED = 16  # of a larger pool this many are compared: the least of sixteen is near enough to the least of all
LEAST_WEIGHT = 0.1  # of a slow start's beginning: with less, one request alone would look like too many


class Loaded(Protocol):
    """An address as far as balancing looks at it. `weight` is its share of the load, above 0, at most 1."""

    active: int
    weight: float


L = TypeVar("L", bound=Loaded)


def least_loaded(candidates: Sequence[L], start: int) -> L:
    """The candidate with the least requests under way for its weight; of equal ones the first from `start` on, so that
    callers with different starts spread, and each keeps to its own. There is at least one candidate."""
    count = len(candidates)
    best = candidates[start % count]
    least = (best.active + 1) / best.weight
    for offset in range(1, min(count, SCANNED)):
        other = candidates[(start + offset) % count]
        load = (other.active + 1) / other.weight
        if load < least:
            best, least = other, load
    return best


def slow_start_weight(age: float, window: float) -> float:
    """The weight of an address that is in service since `age` seconds, where it takes `window` seconds to grow to 1."""
    if age >= window:
        return 1.0
    return max(LEAST_WEIGHT, age / window)

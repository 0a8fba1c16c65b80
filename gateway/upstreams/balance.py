"""Which address of a pool takes the next request: the one with the least under way for its weight. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

SCANNED = 16  # of a larger pool this many are compared: the least of sixteen is near enough to the least of all
LEAST_SHARE = 0.01  # of an address whose weight is 0
MOST_TURNS = 16  # of an address in a ring, and so the finest difference that a start tells
LEAST_WEIGHT = 0.1  # of a slow start's beginning: with less, one request alone would look like too many


class Loaded(Protocol):
    """An address as far as balancing looks at it. `share` is how much of the load it is to have beside the others,
    `weight` how far its slow start is; each above 0, at most 1."""

    active: int
    share: float
    weight: float


L = TypeVar("L", bound=Loaded)


def least_loaded(candidates: Sequence[L], start: int) -> L:
    """The candidate with the least requests under way for its weight; of equal ones the first from `start` on, so that
    callers with different starts spread, and each keeps to its own. There is at least one candidate."""
    count = len(candidates)
    best = candidates[start % count]
    least = (best.active / best.share + 1) / best.weight
    for offset in range(1, min(count, SCANNED)):
        other = candidates[(start + offset) % count]
        load = (other.active / other.share + 1) / other.weight
        if load < least:
            best, least = other, load
    return best


def shares(weights: Sequence[int]) -> list[float]:
    """The share of each of these weights (RFC 2782): the heaviest has 1. A weight of 0 is a very small share, unless
    there are no others."""
    heaviest = max(weights, default=0)
    return [max(weight / heaviest, LEAST_SHARE) if heaviest else 1.0 for weight in weights]


def ring(candidates: Sequence[L]) -> list[L]:
    """`candidates` in turns, each as often as its share says: whoever begins at a place of it that is drawn evenly
    begins at each by its share. Those that are alike stand there once."""
    least = min((each.share for each in candidates), default=1.0)
    if all(each.share == least for each in candidates):
        return list(candidates)
    turns = [max(1, round(each.share * min(1 / least, MOST_TURNS))) for each in candidates]
    due, found = [0.0] * len(turns), list[L]()
    while len(found) < sum(turns):
        due = [have + turn for have, turn in zip(due, turns, strict=True)]
        first = max(range(len(due)), key=due.__getitem__)
        due[first] -= sum(turns)
        found.append(candidates[first])
    return found


def slow_start_weight(age: float, window: float) -> float:
    """The weight of an address that is in service since `age` seconds, where it takes `window` seconds to grow to 1."""
    if age >= window:
        return 1.0
    return max(LEAST_WEIGHT, age / window)

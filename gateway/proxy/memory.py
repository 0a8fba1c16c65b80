"""Which connections hold too much in buffers. Pure values.

Back-pressure bounds every buffer already; this holds their sum, whatever made it: a connection above its own bound
ends, and while all together are above theirs, those that hold the most end first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def over_budget(held: Iterable[tuple[T, int, int]], total: int) -> list[T]:
    """Who has to go. `held` tells how many bytes each holds, and how many it may; `total` is bytes too."""
    ending: list[T] = []
    staying: list[tuple[int, T]] = []
    for holder, size, bound in held:
        if size > bound:
            ending.append(holder)
        elif size:
            staying.append((size, holder))
    excess = sum(size for size, _ in staying) - total
    if excess > 0:
        for size, holder in sorted(staying, key=lambda pair: pair[0], reverse=True):
            ending.append(holder)
            excess -= size
            if excess <= 0:
                break
    return ending

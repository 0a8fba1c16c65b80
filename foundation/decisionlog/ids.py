"""Decision IDs: in the order of time, so that a segment of the log is found by the ID alone.

`d-`, then 12 hex digits of milliseconds since the Unix epoch, then 16 of randomness. IDs of one maker rise strictly,
even when the clock stands or goes back.
"""

from __future__ import annotations

import re

from foundation.clock import Clock
from foundation.randomness import RandomBytes

_ID = re.compile(r"d-[0-9a-f]{28}", re.ASCII)
_RANDOM_BITS = 64


class DecisionIds:
    """Makes IDs: call it. `after` is an ID that every new one must follow."""

    def __init__(self, clock: Clock, *, after: str = "") -> None:
        self._clock = clock
        self._random = RandomBytes()
        self._last = int(after.removeprefix("d-"), 16) if is_decision_id(after) else 0

    def __call__(self) -> str:
        fresh = (int(self._clock.now() * 1000) << _RANDOM_BITS) | int.from_bytes(self._random.take(8), "big")
        self._last = fresh if fresh > self._last else self._last + 1
        return f"d-{self._last:028x}"


def is_decision_id(text: str) -> bool:
    """Whether `text` is an ID as made here."""
    return _ID.fullmatch(text) is not None

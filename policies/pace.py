"""Which routes' decisions take too long to keep an event loop waiting. Pure values, told what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CALM = 32  # evaluations within the budget after which a route counts as quick again, and a lone slow one as chance
MAX_CALM = 4096  # each relapse doubles what is asked for, up to this
MAX_ROUTES = 4096


@dataclass(slots=True)
class _Slow:
    asked: int
    left: int


class Pace:
    """Routes by name; `budget` is in seconds of processor time. Of more slow routes than `MAX_ROUTES` the one longest
    known is forgotten: it will show again."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._slow: dict[str, _Slow] = {}
        self._relapses: dict[str, int] = {}
        self._once: dict[str, int] = {}  # above the budget once: how many evaluations more that counts

    def is_slow(self, route: str) -> bool:
        return route in self._slow

    @property
    def slow_routes(self) -> tuple[str, ...]:
        return tuple(self._slow)

    def note(self, route: str, seconds: float) -> bool:
        """An evaluation of `route` took this long. Whether that makes it slow, and it was not before: one alone may be
        chance (a busy machine, the garbage collector), two within `CALM` are none."""
        slow = self._slow.get(route)
        if seconds > self._budget:
            return self._over(route, slow)
        if slow is not None:
            slow.left -= 1
            if slow.left <= 0:
                del self._slow[route]
        elif self._once and route in self._once:
            self._once[route] -= 1
            if self._once[route] <= 0:
                del self._once[route]
        return False

    def _over(self, route: str, slow: _Slow | None) -> bool:
        if slow is not None:
            slow.left = slow.asked
            return False
        if route not in self._once:
            _bound(self._once)
            self._once[route] = CALM
            return False
        return self._mark(route)

    def _mark(self, route: str) -> bool:
        asked = min(self._relapses.get(route, CALM // 2) * 2, MAX_CALM)
        for known in (self._slow, self._relapses):
            _bound(known)
        del self._once[route]
        self._relapses[route], self._slow[route] = asked, _Slow(asked, asked)
        return True


def _bound(known: dict[str, Any]) -> None:
    if len(known) >= MAX_ROUTES:
        known.pop(next(iter(known)))

"""When there is too much to do: which requests are turned away, so that the others are served in time. Pure values.

Laws held here:
- routes declare a priority, and the lower one goes first; what is critical goes only when there is no room at all;
- two things are measured: the exchanges under way, and by how much the event loop lags. The last part of the room is
  kept for what is more important;
- a standing queue is overload, a hiccup is none: the *least* lag of a window counts (as in CoDel, RFC 8289 §4.2);
- no flapping: shedding begins with one window, and ends by one priority a window, when the lag is well below what began
  it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foundation.fields import Fields
from policies.routes import Priority

WINDOW = 4  # observations
# From the one that goes first: the part of the room that it may fill, and the multiple of the setting's lag from which
# it is shed.
_ORDER = (Priority.LOW, Priority.NORMAL, Priority.HIGH)
_SHARES = {Priority.LOW: 0.70, Priority.NORMAL: 0.85, Priority.HIGH: 0.95, Priority.CRITICAL: 1.0}
_LAGS = (1.0, 2.0, 4.0)
_CALM = 0.5  # of the lag that began it


@dataclass(frozen=True, slots=True)
class OverloadSettings:
    """Section `[gateway.overload]`, for each worker.

    exchanges: requests and streams under way, at most. lag: by how much the event loop may lag, standing, until
    requests of low priority are shed; of normal priority at twice, of high priority at four times that.
    """

    exchanges: int = 20_000
    lag: float = 0.1

    @classmethod
    def parse(cls, fields: Fields) -> OverloadSettings:
        settings = cls(
            exchanges=fields.integer("exchanges", 20_000, least=1, most=1 << 20),
            lag=fields.duration("lag", "100ms"),
        )
        fields.finish()
        return settings


def shed_level(level: int, lag: float, target: float) -> int:
    """How many priorities are shed after a window whose least lag was `lag` (seconds), when `level` were before it."""
    wanted = sum(lag >= target * factor for factor in _LAGS)
    if wanted >= level:
        return wanted
    return level - 1 if lag < target * _LAGS[level - 1] * _CALM else level


def rooms(level: int, exchanges: int) -> Mapping[Priority, int]:
    """Below how many exchanges under way a request of each priority is admitted, when `level` priorities are shed."""
    shed = frozenset(_ORDER[:level])
    return {each: 0 if each in shed else max(1, int(exchanges * share)) for each, share in _SHARES.items()}


class Overload:
    """One worker's judgement of its load. `level` is how many priorities are shed for lag."""

    def __init__(self, settings: OverloadSettings) -> None:
        self._settings = settings
        self._window: list[float] = []
        self.level = 0
        self._rooms = rooms(0, settings.exchanges)

    def observe(self, lag: float) -> None:
        """By how many seconds the event loop was late."""
        self._window.append(lag)
        if len(self._window) < WINDOW:
            return
        level = shed_level(self.level, min(self._window), self._settings.lag)
        self._window.clear()
        if level != self.level:
            self.level = level
            self._rooms = rooms(level, self._settings.exchanges)

    def admits(self, priority: Priority, under_way: int) -> bool:
        """Whether one more request is taken while so many exchanges are under way."""
        return under_way < self._rooms[priority]

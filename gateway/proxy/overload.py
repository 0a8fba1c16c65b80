"""When there is too much to do: which requests are turned away, so that the others are served in time. Pure values.

Laws held here:
- routes declare a priority, and the lower one goes first; what is critical goes only when there is no room at all;
- three things are measured: the exchanges under way, of whose room the last part is kept for what is more important;
  how long a request has waited for its turn of the event loop; and by how much the loop lags as a rule;
- a standing queue is overload, a hiccup is none: the *least* lag of a window counts (as in CoDel, RFC 8289 §4.2);
- no flapping: shedding for lag begins with one window, and ends by one priority a window, when the lag is well below
  what began it. What waits then comes all at once, and is bounded by how long it waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from foundation.fields import Fields
from policies.routes import Priority

WINDOW = 4  # observations
_ORDER = (Priority.LOW, Priority.NORMAL, Priority.HIGH)  # the one that goes first comes first
_LAGS = (1.0, 2.0, 4.0)  # multiples of the setting, from which each is shed
_SHARES = {Priority.LOW: 0.70, Priority.NORMAL: 0.85, Priority.HIGH: 0.95, Priority.CRITICAL: 1.0}  # of the room
_CALM = 0.5  # of the lag that began it


@dataclass(frozen=True, slots=True)
class OverloadSettings:
    """Section `[gateway.overload]`. Workers part `exchanges` among them; `lag` is each one's own.

    exchanges: requests and streams under way, at most. lag: for how long a request may wait for its turn, or the event
    loop lag as a rule, until low priority is shed; normal at twice, high at four times that.
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
        self._patience = {Priority.CRITICAL: inf}
        self._patience.update({each: settings.lag * factor for each, factor in zip(_ORDER, _LAGS, strict=True)})

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

    def admits(self, priority: Priority, under_way: int, waited: float) -> bool:
        """Whether one more request is taken, which `waited` so long (seconds), while so many exchanges are under
        way."""
        return under_way < self._rooms[priority] and waited < self._patience[priority]

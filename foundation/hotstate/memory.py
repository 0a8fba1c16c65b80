"""Hot state in this process: for one gateway, and for tests."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.hotstate.port import MAX_KEY, MAX_VALUE_BYTES
from foundation.reasons import Reason

_OVERHEAD = 256  # what an entry takes beyond key and value, about
_COUNTER = 32


@dataclass(frozen=True, slots=True)
class HotStateSettings:
    """The section `hotstate`: how many entries and bytes the process may hold."""

    max_entries: int = 200_000
    max_bytes: int = 256 << 20

    @classmethod
    def parse(cls, fields: Fields) -> HotStateSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(fields.integer("max_entries", 200_000, least=1), fields.size("max_size", "256MiB"))
        fields.finish()
        return settings


@dataclass(slots=True)
class _Entry:
    value: bytes | int
    ends: float
    cost: int


class MemoryHotState:
    """Implements `HotState` for one event loop. Entries end by the clock's `monotonic`: setting the wall clock neither
    prolongs nor revives them."""

    def __init__(self, settings: HotStateSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._ends: list[tuple[float, str]] = []
        self._bytes = 0

    async def put_once(self, key: str, value: bytes, ttl: float) -> bool:
        if len(value) > MAX_VALUE_BYTES:
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"at most {MAX_VALUE_BYTES} bytes are kept")
        if self._find(key) is not None:
            return False
        self._add(key, value, ttl, len(value))
        return True

    async def get(self, key: str) -> bytes | None:
        return _value(self._find(key))

    async def take(self, key: str) -> bytes | None:
        found = _value(self._find(key))
        self._remove(key)
        return found

    async def delete(self, key: str) -> None:
        self._remove(key)

    async def increment(self, key: str, ttl: float) -> int:
        entry = self._find(key) or self._add(key, 0, ttl, _COUNTER)
        if not isinstance(entry.value, int):
            raise TypeError("this key holds a value, not a counter")
        entry.value += 1
        return entry.value

    async def close(self) -> None:
        self._entries.clear()
        self._ends.clear()
        self._bytes = 0

    def _find(self, key: str) -> _Entry | None:
        if len(key) > MAX_KEY:
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"a key has at most {MAX_KEY} characters")
        self._sweep()
        return self._entries.get(key)

    def _add(self, key: str, value: bytes | int, ttl: float, size: int) -> _Entry:
        if not 0 < ttl < float("inf"):
            raise ValueError("ttl is a number of seconds, more than 0")
        cost = len(key) + size + _OVERHEAD
        if len(self._entries) >= self._settings.max_entries or self._bytes + cost > self._settings.max_bytes:
            raise Fault(Reason.OVERLOADED, "hot state is full")
        entry = _Entry(value, self._clock.monotonic() + ttl, cost)
        self._entries[key] = entry
        self._bytes += cost
        heapq.heappush(self._ends, (entry.ends, key))
        return entry

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.cost
        # Its place in the heap stays until it comes up; many removals would let the heap grow without bound.
        if len(self._ends) > 2 * len(self._entries) + 64:
            self._ends = [(each.ends, name) for name, each in self._entries.items()]
            heapq.heapify(self._ends)

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        while self._ends and self._ends[0][0] <= now:
            _, key = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            if entry is not None and entry.ends <= now:
                del self._entries[key]
                self._bytes -= entry.cost


def _value(entry: _Entry | None) -> bytes | None:
    if entry is None:
        return None
    if not isinstance(entry.value, bytes):
        raise TypeError("this key holds a counter, not a value")
    return entry.value

"""Hot state in this process: for one gateway, and for tests."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.hotstate.port import Swap, check_batch, check_key, check_ttl, check_value
from foundation.hotstate.settings import HotStateSettings
from foundation.reasons import Reason

_OVERHEAD = 256  # what an entry takes beyond key and value, about


@dataclass(slots=True)
class _Entry:
    value: bytes
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
        self._generation = secrets.token_hex(16)

    async def generation(self) -> str:
        return self._generation

    async def put_once(self, key: str, value: bytes, ttl: float) -> bool:
        check_value(value)
        check_ttl(ttl)
        if self._find(key) is not None:
            return False
        self._add(key, value, ttl)
        return True

    async def get(self, key: str) -> bytes | None:
        return _value(self._find(key))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        check_batch(keys)
        return [_value(self._find(key)) for key in keys]

    async def swap(self, swaps: Sequence[Swap], ttl: float) -> list[bool]:
        check_batch(swaps)
        check_ttl(ttl)
        for swap in swaps:
            check_key(swap.key)
            check_value(swap.after or b"")
        return [self._swap(swap, ttl) for swap in swaps]

    async def take(self, key: str) -> bytes | None:
        found = _value(self._find(key))
        self._remove(key)
        return found

    async def delete(self, key: str) -> None:
        self._remove(key)

    async def close(self) -> None:
        self._entries.clear()
        self._ends.clear()
        self._bytes = 0

    def _swap(self, swap: Swap, ttl: float) -> bool:
        entry = self._find(swap.key)
        if _value(entry) != swap.before:
            return False
        if swap.after is None:
            self._remove(swap.key)
            return True
        self._check_room(swap.key, len(swap.after), entry)
        self._remove(swap.key)
        self._add(swap.key, swap.after, ttl)
        return True

    def _find(self, key: str) -> _Entry | None:
        check_key(key)
        self._sweep()
        return self._entries.get(key)

    def _add(self, key: str, value: bytes, ttl: float) -> None:
        cost = self._check_room(key, len(value))
        entry = _Entry(value, self._clock.monotonic() + ttl, cost)
        self._entries[key] = entry
        self._bytes += cost
        heapq.heappush(self._ends, (entry.ends, key))

    def _check_room(self, key: str, size: int, instead: _Entry | None = None) -> int:
        """What an entry costs, when there is room for it once `instead` is gone."""
        cost, freed, left = len(key) + size + _OVERHEAD, instead.cost if instead else 0, 1 if instead else 0
        settings = self._settings
        if len(self._entries) - left >= settings.max_entries or self._bytes - freed + cost > settings.max_bytes:
            raise Fault(Reason.OVERLOADED, "hot state is full")
        return cost

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
    return None if entry is None else entry.value

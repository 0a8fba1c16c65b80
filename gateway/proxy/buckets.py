"""Token buckets that all workers of a gateway share, so that a rate is a rate however many workers there are.

Laws held here:
- a bucket is one number: when it will be full again. One that is full needs no place, so nothing is ever cleared away;
- the table is bounded. A key belongs to a group of places; when all are taken, the bucket that is full the soonest
  gives way;
- a group is one process's while it counts: by a record lock (fcntl(2)), which the kernel takes back from who ends;
- what cannot be (the file of another boot, half a write) counts as a full bucket.
"""

from __future__ import annotations

import mmap
import os
from fcntl import LOCK_EX, LOCK_UN, lockf
from math import inf
from pathlib import Path
from struct import Struct

from gateway.shared_memory import open_shared

KEY_BYTES = 16
PLACES = 8  # of one key
ROUNDING = 1e-6  # seconds that sums of times may be off by
_SLOT = Struct("<16sd")
_SLOTS = 1 << 17


class Buckets:
    """A table in memory that may be shared. Times are monotonic seconds, the same for all processes of a machine
    (clock_gettime(2), CLOCK_MONOTONIC)."""

    def __init__(self, memory: mmap.mmap, descriptor: int | None = None) -> None:
        """`descriptor` is what the table is locked by; None where nobody else has it."""
        self._memory = memory
        self._descriptor = descriptor
        self._groups = len(memory) // (_SLOT.size * PLACES)

    @classmethod
    def private(cls, slots: int = _SLOTS) -> Buckets:
        """For one process."""
        return cls(mmap.mmap(-1, slots * _SLOT.size))

    @classmethod
    def shared(cls, path: Path, slots: int = _SLOTS) -> Buckets:
        """For all who name the same file. Raises `Fault(FILE_UNREADABLE)`."""
        memory, descriptor = open_shared(path, slots * _SLOT.size)
        return cls(memory, descriptor)

    def take(self, key: bytes, now: float, per_second: float, burst: float) -> bool:
        """Take one token of the bucket `key` (16 bytes), which holds `burst` and gets `per_second`; whether there was
        one."""
        group = int.from_bytes(key[:8], "little") % self._groups
        if self._descriptor is None:
            return self._take(group, key, now, per_second, burst)
        lockf(self._descriptor, LOCK_EX, 1, group)
        try:
            return self._take(group, key, now, per_second, burst)
        finally:
            lockf(self._descriptor, LOCK_UN, 1, group)

    def close(self) -> None:
        """Let go of the table."""
        self._memory.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, group: int, key: bytes, now: float, per_second: float, burst: float) -> bool:
        place, full_at = self._find(group, key, now)
        span, cost = burst / per_second, 1.0 / per_second
        if not now <= full_at <= now + span + ROUNDING:
            full_at = now
        full_at += cost
        if full_at - now > span + ROUNDING:
            return False
        _SLOT.pack_into(self._memory, place, key, full_at)
        return True

    def _find(self, group: int, key: bytes, now: float) -> tuple[int, float]:
        """The place of `key`, and when its bucket is full; or a place for it, and `now`."""
        memory, size = self._memory, _SLOT.size
        first = group * PLACES * size
        best, least = first, inf
        for place in range(first, first + PLACES * size, size):
            holder, full_at = _SLOT.unpack_from(memory, place)
            if holder == key:
                return place, full_at
            if not full_at >= least:
                best, least = place, full_at
        return best, now

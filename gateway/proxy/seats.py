"""How many connections each identity has at all workers of a gateway together.

Laws held here:
- a worker writes its own column of the table and no other; when it has ended, however it ended, the main process clears
  that column;
- a group of places is one process's while it counts: by a record lock (fcntl(2)), which the kernel takes back from who
  ends. So the bound is exact, however many workers take at once;
- the table is bounded: an identity for which there is no place is counted by its own worker alone.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from fcntl import LOCK_EX, LOCK_UN, lockf
from hashlib import blake2b
from pathlib import Path
from struct import Struct

from gateway.shared_memory import open_shared

COLUMNS = 32  # workers at one time; one of a higher number counts for itself
PLACES = 8  # of one key
KEY_BYTES = 16
MOST = (1 << 16) - 1  # of one identity at one worker
_COUNTS = Struct(f"<{COLUMNS}H")
_COUNT = Struct("<H")
_SLOT_BYTES = KEY_BYTES + _COUNTS.size
_SLOTS = 1 << 15


class Seats:
    """A table in memory that may be shared; `column` is where this process counts."""

    def __init__(self, memory: mmap.mmap, column: int, descriptor: int | None = None) -> None:
        """`descriptor` is what the table is locked by; None where nobody else has it."""
        self._memory = memory
        self._column = column
        self._descriptor = descriptor
        self._groups = len(memory) // (_SLOT_BYTES * PLACES)
        self._homeless: Counter[bytes] = Counter()

    @classmethod
    def private(cls, slots: int = _SLOTS) -> Seats:
        """For one process."""
        return cls(mmap.mmap(-1, slots * _SLOT_BYTES), 0)

    @classmethod
    def shared(cls, path: Path, column: int, slots: int = _SLOTS) -> Seats:
        """For all who name the same file. Raises `Fault(FILE_UNREADABLE)`."""
        if column >= COLUMNS:
            return cls.private(slots)
        memory, descriptor = open_shared(path, slots * _SLOT_BYTES)
        return cls(memory, column, descriptor)

    def take(self, identity: str, most: int) -> bool:
        """Count one more connection of `identity`, unless there are `most` already; whether there was room."""
        return self._locked(_key(identity), most)

    def give_back(self, identity: str) -> None:
        """One that was taken has ended."""
        self._locked(_key(identity), None)

    def reset(self) -> None:
        """Nobody is connected."""
        self._memory[:] = bytes(len(self._memory))

    def clear(self, column: int) -> None:
        """The worker of this number has ended, and all its connections with it."""
        if column < COLUMNS:
            for slot in range(0, len(self._memory) - _SLOT_BYTES + 1, _SLOT_BYTES):
                _COUNT.pack_into(self._memory, slot + KEY_BYTES + _COUNT.size * column, 0)

    def close(self) -> None:
        """Let go of the table."""
        self._memory.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _locked(self, key: bytes, most: int | None) -> bool:
        group = int.from_bytes(key[:8], "little") % self._groups
        if self._descriptor is None:
            return self._count(group, key, most)
        lockf(self._descriptor, LOCK_EX, 1, group)
        try:
            return self._count(group, key, most)
        finally:
            lockf(self._descriptor, LOCK_UN, 1, group)

    def _count(self, group: int, key: bytes, most: int | None) -> bool:
        """Take, or with None give back."""
        if most is None and self._homeless[key]:
            self._homeless -= Counter([key])
            return True
        slot, counts = self._find(group, key, free=most is not None)
        if slot is None:
            if most is None or self._homeless[key] >= most:
                return False
            self._homeless[key] += 1
            return True
        own = counts[self._column]
        if most is None:
            own = max(0, own - 1)
        elif sum(counts) >= most or own >= MOST:
            return False
        else:
            own += 1
        self._memory[slot : slot + KEY_BYTES] = key
        _COUNT.pack_into(self._memory, slot + KEY_BYTES + _COUNT.size * self._column, own)
        return True

    def _find(self, group: int, key: bytes, *, free: bool) -> tuple[int | None, tuple[int, ...]]:
        """The slot of `key` and its counts; with `free`, otherwise one that counts nobody."""
        memory, vacant = self._memory, None
        first = group * PLACES * _SLOT_BYTES
        for slot in range(first, first + PLACES * _SLOT_BYTES, _SLOT_BYTES):
            counts = _COUNTS.unpack_from(memory, slot + KEY_BYTES)
            if memory[slot : slot + KEY_BYTES] == key:
                return slot, counts
            if vacant is None and not any(counts):
                vacant = slot
        return (vacant if free else None), (0,) * COLUMNS


def _key(identity: str) -> bytes:
    return blake2b(identity.encode(), digest_size=KEY_BYTES).digest()

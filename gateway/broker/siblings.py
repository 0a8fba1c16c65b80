"""Which worker of this gateway holds a node's tunnel.

Laws held here:
- the newest claim of a node has it, at whichever worker; epochs only rise, over all nodes, workers and restarts, so
  that no two claims ever have the same;
- only who made a claim can release it, and only while nobody claimed after it;
- what a claim is, is one word of eight bytes, written at once: a worker that is killed leaves the claim before, or its
  own, and the main process clears its own when it has ended;
- a group of places is one process's while it is read or written, by a record lock (fcntl(2)), which the kernel takes
  back from who ends;
- the table is bounded: a node for which there is no place is refused.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_UN, lockf
from hashlib import blake2b
from pathlib import Path
from struct import Struct

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from gateway.shared_memory import open_shared

PLACES = 1 << 16
GROUP = 128  # places that one node may be at; of half as many nodes as there are places, each finds one
_KEY_BYTES = 16
_WORKER_BITS = 8
WORKERS = 1 << _WORKER_BITS
_WORD = Struct("<Q")  # epoch and worker; 0 where nobody has the place
_WORDS = Struct(f"<{GROUP}Q")
_HEADER_BYTES = 64  # the newest epoch, alone in its cache line
_GROUP_BYTES = _WORDS.size + GROUP * _KEY_BYTES


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a node's tunnel: the worker's number, and the epoch of its claim."""

    worker: int
    epoch: int


class SiblingTable:
    """A table in memory that may be shared; `worker` is the number of this process."""

    def __init__(self, memory: mmap.mmap, worker: int, descriptor: int | None = None) -> None:
        """`descriptor` is what the table is locked by; None where nobody else has it."""
        if not 0 <= worker < WORKERS:
            raise ValueError(f"workers are numbered from 0 to {WORKERS - 1}")
        self._memory = memory
        self._worker = worker
        self._descriptor = descriptor
        self._groups = (len(memory) - _HEADER_BYTES) // _GROUP_BYTES

    @classmethod
    def private(cls, worker: int = 0, places: int = PLACES) -> SiblingTable:
        """For one process."""
        return cls(mmap.mmap(-1, _size(places)), worker)

    @classmethod
    def shared(cls, path: Path, worker: int, places: int = PLACES) -> SiblingTable:
        """For all who name the same file. Raises `Fault(FILE_UNREADABLE)`."""
        memory, descriptor = open_shared(path, _size(places))
        return cls(memory, worker, descriptor)

    def claim(self, node: SpiffeId) -> int:
        """This worker holds the tunnel of `node`, as from now; the claim's epoch, more than any before. Raises
        `Fault(OVERLOADED)` when there is no place left."""
        key = _key(node)
        group = self._group(key)
        self._lock(group)
        try:
            place = self._find(group, key)
            if place is None:
                place = self._settle(group, key)
            epoch = self._next_epoch()
            self._put(group, place, epoch << _WORKER_BITS | self._worker)
            return epoch
        finally:
            self._unlock(group)

    def release(self, node: SpiffeId, epoch: int) -> None:
        """The claim of this epoch is over. Nothing where it was not this worker's, or is not the newest."""
        key, own = _key(node), epoch << _WORKER_BITS | self._worker
        group = self._group(key)
        self._lock(group)
        try:
            place = self._find(group, key)
            if place is not None and self._words(group)[place] == own:
                self._put(group, place, 0)
        finally:
            self._unlock(group)

    def owner(self, node: SpiffeId) -> Owner | None:
        """Whose the newest claim of `node` is; None when that one is over."""
        key = _key(node)
        group = self._group(key)
        self._lock(group)
        try:
            place = self._find(group, key)
            word = 0 if place is None else self._words(group)[place]
        finally:
            self._unlock(group)
        return Owner(word & (WORKERS - 1), word >> _WORKER_BITS) if word else None

    def clear(self, worker: int) -> None:
        """The worker of this number has ended, and all its tunnels with it."""
        for group in range(self._groups):
            if any(_is_of(word, worker) for word in self._words(group)):
                self._clear_group(group, worker)

    def reset(self) -> None:
        """Nobody has a tunnel. Epochs go on rising."""
        for group in range(self._groups):
            _WORDS.pack_into(self._memory, self._at(group), *(0,) * GROUP)

    def close(self) -> None:
        """Let go of the table."""
        self._memory.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _clear_group(self, group: int, worker: int) -> None:
        self._lock(group)
        try:
            for place, word in enumerate(self._words(group)):
                if _is_of(word, worker):
                    self._put(group, place, 0)
        finally:
            self._unlock(group)

    def _find(self, group: int, key: bytes) -> int | None:
        """The place that has, or had, this node."""
        first = self._at(group) + _WORDS.size
        end, at = first + GROUP * _KEY_BYTES, first
        while (at := self._memory.find(key, at, end)) >= 0:
            place, beside = divmod(at - first, _KEY_BYTES)
            if not beside:
                return place
            at += 1
        return None

    def _settle(self, group: int, key: bytes) -> int:
        """A vacant place, this node's from now on."""
        words = self._words(group)
        if 0 not in words:
            raise Fault(Reason.OVERLOADED, "there is no place for another tunnel")
        place = words.index(0)
        at = self._at(group) + _WORDS.size + place * _KEY_BYTES
        self._memory[at : at + _KEY_BYTES] = key
        return place

    def _next_epoch(self) -> int:
        self._lock(self._groups)
        try:
            epoch: int = _WORD.unpack_from(self._memory, 0)[0] + 1
            _WORD.pack_into(self._memory, 0, epoch)
            return epoch
        finally:
            self._unlock(self._groups)

    def _words(self, group: int) -> tuple[int, ...]:
        return _WORDS.unpack_from(self._memory, self._at(group))

    def _put(self, group: int, place: int, word: int) -> None:
        _WORD.pack_into(self._memory, self._at(group) + place * _WORD.size, word)

    def _at(self, group: int) -> int:
        return _HEADER_BYTES + group * _GROUP_BYTES

    def _group(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") % self._groups

    def _lock(self, byte: int) -> None:
        if self._descriptor is not None:
            lockf(self._descriptor, LOCK_EX, 1, byte)

    def _unlock(self, byte: int) -> None:
        if self._descriptor is not None:
            lockf(self._descriptor, LOCK_UN, 1, byte)


def _is_of(word: int, worker: int) -> bool:
    return word != 0 and word & (WORKERS - 1) == worker


def _size(places: int) -> int:
    return _HEADER_BYTES + -(-places // GROUP) * _GROUP_BYTES


def _key(node: SpiffeId) -> bytes:
    return blake2b(str(node).encode(), digest_size=_KEY_BYTES).digest()

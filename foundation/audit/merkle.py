"""Merkle tree mathematics (RFC 9162 §2.1), pure: hashes in, hashes out.

`Range` is what a log keeps to grow: the roots of the complete subtrees, one per set bit of the size. `Tree` keeps every
node and makes proofs. The two `verify_*` functions are what a doubter runs: they need neither.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """RFC 9162 §2.1.1: MTH({d}) = SHA-256(0x00 ‖ d)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 9162 §2.1.1: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Range:
    """The tree over the first `size` leaves, by the roots of its complete subtrees, the largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.peaks) != self.size.bit_count():
            raise ValueError("a range has one peak per set bit of its size")

    def extended(self, leaves: Iterable[bytes]) -> Range:
        """The range with these leaf hashes behind it."""
        size, peaks = self.size, list(self.peaks)
        for leaf in leaves:
            root, full = leaf, size
            while full & 1:
                root, full = node_hash(peaks.pop(), root), full >> 1
            peaks.append(root)
            size += 1
        return Range(size, tuple(peaks))

    def root(self) -> bytes:
        if not self.peaks:
            return EMPTY_ROOT
        *left, root = self.peaks
        for peak in reversed(left):
            root = node_hash(peak, root)
        return root


class Tree:
    """Every complete subtree's hash of a log, for proofs. Takes 64 bytes per leaf."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels = [bytearray()]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        root, index, level = leaf, self.size, 0
        self._levels[0] += leaf
        while index & 1:
            root, index, level = node_hash(self._node(level, index - 1), root), index >> 1, level + 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += root

    def root(self, size: int) -> bytes:
        """The root over the first `size` leaves."""
        self._check(0 <= size <= self.size)
        return self._root(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """RFC 9162 §2.1.3.1: PATH(index, D[size]), from the leaf upwards."""
        self._check(0 <= index < size <= self.size)
        path, begin, end = [], 0, size
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if index < middle:
                path.append(self._root(middle, end))
                end = middle
            else:
                path.append(self._root(begin, middle))
                begin = middle
        return tuple(reversed(path))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """RFC 9162 §2.1.4.1: PROOF(first, D[second])."""
        self._check(0 < first <= second <= self.size)
        path, begin, end, known = [], 0, second, True
        while first != end:
            middle = begin + _split(end - begin)
            if first <= middle:
                path.append(self._root(middle, end))
                end = middle
            else:
                path.append(self._root(begin, middle))
                begin, known = middle, False
        return tuple(reversed(path if known else [*path, self._root(begin, end)]))

    def _root(self, begin: int, end: int) -> bytes:
        width = end - begin
        if width & (width - 1) == 0:  # complete: the ranges asked for are aligned
            level = width.bit_length() - 1
            return self._node(level, begin >> level)
        middle = begin + _split(width)
        return node_hash(self._root(begin, middle), self._root(middle, end))

    def _node(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    @staticmethod
    def _check(holds: bool) -> None:
        if not holds:
            raise ValueError("outside the tree")


def verify_inclusion(leaf: bytes, index: int, size: int, path: tuple[bytes, ...], root: bytes) -> bool:
    """RFC 9162 §2.1.3.2: whether `leaf` stands at `index` of the tree of `size` leaves with this `root`."""
    if not 0 <= index < size:
        return False
    fn, sn, reached = index, size - 1, leaf
    for step in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            reached = node_hash(step, reached)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            reached = node_hash(reached, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and hmac.compare_digest(reached, root)


def verify_consistency(first: int, second: int, path: tuple[bytes, ...], first_root: bytes, second_root: bytes) -> bool:
    """RFC 9162 §2.1.4.2: whether the tree of `second` leaves begins with that of `first`. An empty first tree is the
    beginning of any."""
    if first == 0:
        return not path and second >= 0 and hmac.compare_digest(first_root, EMPTY_ROOT)
    if first == second:
        return not path and hmac.compare_digest(first_root, second_root)
    if not 0 < first < second or not path:
        return False
    steps = path if first & (first - 1) else (first_root, *path)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(step, old), node_hash(step, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and hmac.compare_digest(old, first_root) and hmac.compare_digest(new, second_root)


def _split(width: int) -> int:
    """The largest power of two smaller than `width` (RFC 9162 §2.1.1)."""
    return 1 << ((width - 1).bit_length() - 1)

"""Random bytes of the kernel, fetched in blocks: each request needs some, and a system call for each of them shows.

They name things (decisions, traces). Keys and nonces are drawn one at a time, by `secrets`.
"""

from __future__ import annotations

import os

_BLOCK = 4096


class RandomBytes:
    """Gives out the kernel's random bytes, each once. Belongs to one thread of one process: a forked child would give
    out the rest of its parent's block, so make one behind the fork."""

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes, at most 4096."""
        at, end = self._at, self._at + count
        if end > len(self._block):
            self._block = os.urandom(_BLOCK)
            at, end = 0, count
        self._at = end
        return self._block[at:end]

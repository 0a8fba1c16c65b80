"""Where decisions are sampled for a shadow evaluation, if one runs.

Laws held here:
- a decision is never delayed for it: nothing is awaited, a sample that finds no room is dropped and counted;
- what sampling costs is bounded: `per_second` samples, spread over the decisions of a second.

A worker need not be told: whoever evaluates listens on a socket in the state folder, and a tap looks once a second
whether anybody does.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from policies.model import Decision
from policies.shadow import MAX_SAMPLE_BYTES, sample_of

SOCKET = "samples"
PER_SECOND = 50
_NOBODY = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR})


class ShadowTap:
    """Offers decisions to whoever listens in `folder`. One event loop owns it."""

    def __init__(self, folder: Path, per_second: int = PER_SECOND) -> None:
        self._folder = folder
        self._per_second = per_second
        self._socket: socket.socket | None = None
        self._second = 0
        self._seen = self._told = self._dropped = 0
        self._seen_before = 0  # this second
        self._stride = 1
        self._left = 0

    def offer(self, decision: Decision) -> None:
        """`decision` was made by policy."""
        query = decision.query
        if query is None:
            return
        if query.now != self._second:
            self._begin_second(query.now)
        self._seen += 1
        if self._left > 0 and self._seen % self._stride == 0:
            self._left -= 1
            self._send(sample_of(decision, query, self._seen - self._told, self._dropped))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _begin_second(self, second: int) -> None:
        """Spread the samples over as many decisions as the last second had."""
        self._second = second
        if self._socket is None:
            self._look()
        self._stride = max(1, -(-(self._seen - self._seen_before) // self._per_second))
        self._seen_before = self._seen
        self._left = self._per_second if self._socket is not None else 0

    def _look(self) -> None:
        """Whether anybody listens now. What was seen before is of no interest to them."""
        self._seen = self._seen_before = self._told = self._dropped = 0
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            connect(found, self._folder)
        except OSError:
            found.close()
        else:
            self._socket = found

    def _send(self, sample: bytes) -> None:
        if self._socket is None:
            return
        try:
            if len(sample) > MAX_SAMPLE_BYTES:
                raise OSError(errno.EMSGSIZE, "too large")
            self._socket.send(sample)
        except OSError as error:
            self._dropped += 1
            if error.errno in _NOBODY:
                self.close()
                self._left = 0
            return
        self._told, self._dropped = self._seen, 0


def connect(sender: socket.socket, folder: Path) -> None:
    """Connect to who listens in `folder`. Raises `OSError`."""
    _in_folder(folder, sender.connect)


def listen(folder: Path) -> socket.socket:
    """The socket that samples come to; `folder` must be ours alone. Raises `OSError`."""
    (folder / SOCKET).unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        _in_folder(folder, made.bind)
    except OSError:
        made.close()
        raise
    return made


def _in_folder(folder: Path, act: Callable[[str], None]) -> None:
    """The address of a Unix socket takes 107 octets, less than a path may have: go by the folder's descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        act(f"/proc/self/fd/{descriptor}/{SOCKET}")
    finally:
        os.close(descriptor)

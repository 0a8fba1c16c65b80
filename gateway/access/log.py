"""Writes the access log: lines are made where requests end, and brought to disk by a thread, many at a time.

Laws held here:
- nothing waits for the disk: what does not fit into the buffer is dropped, and counted;
- the file is bounded, and so is their number;
- several processes may write one file: each line is written whole (O_APPEND), one process at a time moves the file
  away, and the others notice. So may a program such as logrotate.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

from foundation.clock import Clock
from gateway.access.lines import Access, line_of
from gateway.access.settings import AccessLogSettings

FLUSH_SECONDS = 0.25
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o640
_LOG = logging.getLogger(__name__)


class AccessLog:
    """The log at `path`. Keep `run` running. `on_drop` is told how many lines were dropped."""

    def __init__(
        self, path: Path, settings: AccessLogSettings, clock: Clock, on_drop: Callable[[int], None] = lambda count: None
    ) -> None:
        self._clock = clock
        self._buffer = settings.buffer
        self._line = line_of(settings.format, settings.query)
        self._file = _File(path, settings.file_size, settings.files)
        self._on_drop = on_drop
        self._lines: list[bytes] = []
        self._size = 0
        self._failing = False

    def ended(self, access: Access) -> None:
        """A request ended."""
        if self._size >= self._buffer:
            self._on_drop(1)
            return
        line = self._line(access)
        self._lines.append(line)
        self._size += len(line)

    async def run(self) -> None:
        """Bring lines to disk until cancelled, and the last ones then."""
        try:
            while True:
                await self._clock.sleep(FLUSH_SECONDS)
                if self._lines:
                    await asyncio.to_thread(self._write, self._take())
        finally:
            self._write(self._take())
            self._file.close()

    def _take(self) -> list[bytes]:
        lines, self._lines, self._size = self._lines, [], 0
        return lines

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        try:
            self._file.append(b"".join(lines))
            self._failing = False
        except OSError as error:
            self._on_drop(len(lines))
            if not self._failing:
                _LOG.error("the access log cannot be written: %s", error)
            self._failing = True


class _File:
    """The file, and those it became. One thread at a time."""

    def __init__(self, path: Path, most: int, files: int) -> None:
        self._path = path
        self._most = most
        self._files = files
        self._file = -1

    def append(self, data: bytes) -> None:
        """Raises `OSError`."""
        if self._file < 0 or not self._is_in_place():
            self.close()
            self._file = os.open(self._path, _FLAGS, _MODE)
        while data:
            data = data[os.write(self._file, data) :]
        if os.fstat(self._file).st_size >= self._most:
            self._rotate()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _is_in_place(self) -> bool:
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._file)
        return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)

    def _rotate(self) -> None:
        lock = os.open(self._numbered("lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_in_place():  # no other process was faster
                for number in range(self._files - 1, 0, -1):
                    if self._numbered(number).exists():
                        self._numbered(number).replace(self._numbered(number + 1))
                self._path.replace(self._numbered(1))
        finally:
            os.close(lock)
        self.close()

    def _numbered(self, suffix: int | str) -> Path:
        return self._path.with_name(f"{self._path.name}.{suffix}")

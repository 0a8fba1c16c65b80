"""Numbered lines in files: appended, read from any number on, dropped from the front. Blocks; knows nothing of records.

Laws held here:
- a line is written by one call, behind its length and a checksum over its number and itself; a write that fails, or
  is cut short, is taken back whole;
- what a crash left torn at the end is cut off when the files are opened, and how much that was is told;
- nothing is moved: a number, once given to a line that was synced, is that line's for ever.

A file begins with the number in its name (16 hex digits) and takes `FILE_BYTES`; a frame is two 32-bit integers, length
and CRC-32, big-endian, and the line.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundation.files import make_private_folder, read_secret, sync_folder

FILE_BYTES = 128 * 1024
_FRAME = struct.Struct(">II")
_NUMBER = struct.Struct(">Q")
_MAX_LINE_BYTES = 64 * 1024
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW


@dataclass(slots=True)
class _File:
    path: Path
    first: int
    count: int
    size: int

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class RecordFiles:
    """The files of `folder`. Numbers follow `after`, unless files are there that went further."""

    def __init__(self, folder: Path, after: int) -> None:
        """Takes up what is there. Raises `OSError` and `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        make_private_folder(folder)
        self._folder = folder
        self._guard = threading.Lock()  # of the descriptors, which `sync` takes in another thread
        self._unsynced: list[int] = []  # descriptors of files that are full
        self._descriptor = -1
        self.cut = 0
        """How many bytes were of no use when the files were opened."""
        self._files = self._recover(after)
        self.last = self._files[-1].last if self._files else after
        self._synced = self.last

    @property
    def size(self) -> int:
        """All bytes that the files take."""
        return sum(file.size for file in self._files)

    def append(self, line: bytes) -> None:
        """Give `line` the next number, and hand it to the kernel. Raises `OSError`; then nothing has changed."""
        number = self.last + 1
        if self._descriptor < 0 or self._files[-1].size >= FILE_BYTES:
            self._begin(number)
        file, frame = self._files[-1], _frame(number, line)
        try:
            if os.write(self._descriptor, frame) != len(frame):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._descriptor, file.size)
            raise
        file.size += len(frame)
        file.count += 1
        self.last = number

    def sync(self) -> int:
        """Bring all lines to disk. The last number that is there now. May run in another thread, once at a time."""
        with self._guard:
            last, current = self.last, self._descriptor
            full, self._unsynced = self._unsynced, []
        for descriptor in (*full, current):
            if descriptor >= 0:
                os.fdatasync(descriptor)
        for descriptor in full:
            os.close(descriptor)
        self._synced = max(self._synced, last)
        return self._synced

    def read(self, after: int, most: int, max_bytes: int) -> tuple[bytes, ...]:
        """The lines behind `after`, `most` of them and `max_bytes` at most, of those that are synced."""
        found: list[bytes] = []
        size = 0
        for file in list(self._files):
            if file.last <= after:
                continue
            for number, line in _lines(read_secret(file.path, max_bytes=2 * FILE_BYTES), file.first):
                if number <= after:
                    continue
                size += len(line)
                if number > self._synced or len(found) == most or size > max_bytes:
                    return tuple(found)
                found.append(line)
        return tuple(found)

    def drop(self, through: int) -> None:
        """Lines up to this number are not needed any more. Raises `OSError`."""
        while self._files and self._files[0].last <= through and (len(self._files) > 1 or self._files[0].count):
            if len(self._files) == 1:
                self._retire()
            self._files.pop(0).path.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync, and close."""
        self.sync()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin(self, number: int) -> None:
        """A new file for the lines from `number` on."""
        path = self._folder / f"{number:016x}.log"
        descriptor = os.open(path, _APPEND | os.O_EXCL, 0o600)
        try:
            sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._retire()
        self._descriptor = descriptor
        self._files.append(_File(path, number, 0, 0))

    def _retire(self) -> None:
        with self._guard:
            if self._descriptor >= 0:
                self._unsynced.append(self._descriptor)
                self._descriptor = -1

    def _recover(self, after: int) -> list[_File]:
        """The files that continue each other. What follows a damage has lost its place, and is removed."""
        found: list[_File] = []
        damaged = False
        for path in sorted(self._folder.glob("*.log")):
            first, raw = int(path.stem, 16), read_secret(path, max_bytes=2 * FILE_BYTES)
            continues = first == found[-1].last + 1 if found else first <= after + 1
            lines = list(_lines(raw, first)) if continues and not damaged else []
            used = sum(_FRAME.size + len(line) for _, line in lines)
            self.cut += len(raw) - used
            damaged = damaged or used != len(raw) or not lines
            if not lines or lines[-1][0] <= after:
                path.unlink()
                continue
            if used != len(raw):
                os.truncate(path, used)
            found.append(_File(path, first, len(lines), used))
        return found


def _frame(number: int, line: bytes) -> bytes:
    return _FRAME.pack(len(line), zlib.crc32(_NUMBER.pack(number) + line)) + line


def _lines(raw: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    """The lines in a file, each with its number, up to the first that is damaged."""
    at, number = 0, first
    while len(raw) - at >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(raw, at)
        line = raw[at + _FRAME.size : at + _FRAME.size + length]
        if len(line) != length or length > _MAX_LINE_BYTES or zlib.crc32(_NUMBER.pack(number) + line) != checksum:
            return
        yield number, line
        at += _FRAME.size + length
        number += 1

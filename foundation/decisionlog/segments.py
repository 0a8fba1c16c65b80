"""The decision log's files: the one that grows, and those that are closed. Synchronous: what takes long runs in a
thread.

A segment is named after the first decision recorded in it: `<id>.jsonl` while it grows, `<id>.jsonl.gz` once closed,
with its index `<id>.idx` (`foundation.decisionlog.blocks`). Its SHA-256 is that of the lines, uncompressed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from foundation.decisionlog.blocks import INDEX_SUFFIX, Rest, go_on, index_path, pack, pieces, write_index
from foundation.decisionlog.line import ID_PREFIX
from foundation.files import SECRET_MODE, sync_folder

OPEN_SUFFIX, CLOSED_SUFFIX = ".jsonl", ".jsonl.gz"
_PIECE_BYTES = 64 << 10
_ID_AT = slice(len(ID_PREFIX), len(ID_PREFIX) + len("d-") + 28)


class ActiveSegment:
    """The segment that grows. `size` is how many bytes of whole lines it holds."""

    def __init__(self, directory: Path, first: str) -> None:
        self.path = directory / f"{first}{OPEN_SUFFIX}"
        self.size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, SECRET_MODE)

    def append(self, data: bytes) -> None:
        """Hand whole lines to the kernel, all or none. Raises `OSError`."""
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What the audit log keeps of a closed segment."""

    first: str
    last: str
    count: int
    size: int
    sha256: str


def segment_paths(directory: Path) -> list[Path]:
    """All segments, oldest first."""
    found = (path for path in directory.iterdir() if path.name.endswith((OPEN_SUFFIX, CLOSED_SUFFIX)))
    return sorted((path for path in found if not path.name.startswith(".")), key=first_id)


def first_id(path: Path) -> str:
    return path.name.split(".")[0]


def id_of(line: bytes) -> str:
    return line[_ID_AT].decode("ascii", "replace")


def newest_id(directory: Path) -> str:
    """The ID recorded last, or nothing when the log is empty. Raises `OSError`."""
    while paths := segment_paths(directory):
        try:
            return max(first_id(paths[-1]), facts(paths[-1]).last)
        except FileNotFoundError:  # it was closed meanwhile, or dropped
            continue
        except EOFError:  # damaged: IDs go by trust time, which its last one is not ahead of
            return first_id(paths[-1])
    return ""


def facts(path: Path, rest: Rest = go_on) -> SegmentFacts:
    """Computed anew from the file, so that it can be compared with the audit log. Piece by piece: what a thread has
    once held, the allocator keeps for that thread. Raises `OSError` and `EOFError`."""
    first, last, count, size, digest = "", "", 0, 0, hashlib.sha256()
    try:
        with gzip.open(path) if path.name.endswith(CLOSED_SUFFIX) else path.open("rb") as file:
            for lines in pieces(file.read, _PIECE_BYTES):
                first = first or id_of(lines)
                last = id_of(lines[lines.rfind(b"\n", 0, -1) + 1 :])
                count += lines.count(b"\n")
                size += len(lines)
                digest.update(lines)
                rest()
    except (gzip.BadGzipFile, zlib.error) as error:
        raise EOFError(f"a damaged segment: {error}") from error
    return SegmentFacts(first, last, count, size, digest.hexdigest())


def compress(path: Path, rest: Rest = go_on) -> Path:
    """Replace an open segment by its closed form, on disk when this returns. Raises `OSError`."""
    closed = path.with_name(f"{first_id(path)}{CLOSED_SUFFIX}")
    draft = path.with_name(f".{closed.name}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as file:
        with path.open("rb") as lines:
            index = pack(lines, path.stat().st_size, file, rest)
        file.flush()
        os.fsync(file.fileno())
    write_index(closed, index)
    draft.replace(closed)
    sync_folder(path.parent)
    path.unlink()
    return closed


def remove(path: Path) -> None:
    """Remove a segment and its index. Raises `OSError`."""
    path.unlink()
    index_path(path).unlink(missing_ok=True)


def disk_bytes(path: Path) -> int:
    """What a segment takes on disk, its index included."""
    index = index_path(path)
    return path.stat().st_size + (index.stat().st_size if index.exists() else 0)


def mend(directory: Path) -> list[Path]:
    """After a crash: drop drafts and doubles, cut torn lines, and return the segments still to be closed."""
    for draft in directory.glob(".*"):
        draft.unlink()
    for index in directory.glob(f"*{INDEX_SUFFIX}"):
        if not any(index.with_name(first_id(index) + suffix).exists() for suffix in (OPEN_SUFFIX, CLOSED_SUFFIX)):
            index.unlink()
    unclosed = []
    for path in directory.glob(f"*{OPEN_SUFFIX}"):
        whole = facts(path).size
        if not whole or path.with_name(f"{first_id(path)}{CLOSED_SUFFIX}").exists():
            path.unlink()
            continue
        os.truncate(path, whole)
        unclosed.append(path)
    return sorted(unclosed)

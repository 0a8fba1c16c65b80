"""The audit log's files, and reading them.

A segment `<index of its first record, 20 digits>.log` begins with a header: the tree so far and its signed head. Then
come commits: some records, one per line, and the signed head over everything up to them. A commit is written in one
append and acknowledged after fsync. Hence, when reading:

- bytes behind the last head, in the last segment, without a complete head line, are a commit that a crash tore. Nobody
  was told that it succeeded; opening the log cuts it off;
- everything else that does not verify is tampering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from foundation.audit.merkle import Range, leaf_hash
from foundation.audit.records import HEAD, MAX_LINE_BYTES, RECORD, TreeHead, canonical, read_hashes
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

HEAD_FILE = "head.json"
MAX_COMMIT_BYTES = 4 << 20
_SUFFIX = ".log"
_TIME_AND_END = len('2026-11-23T00:00:00.000Z"}')


def segment_path(directory: Path, first: int) -> Path:
    return directory / f"{first:020d}{_SUFFIX}"


def segment_paths(directory: Path) -> list[Path]:
    """The log's segments in order. Raises `Fault(AUDIT_TAMPERED)` when there is none."""
    paths = sorted(path for path in directory.glob(f"*{_SUFFIX}") if not path.name.startswith("."))
    if not paths:
        raise Fault(Reason.AUDIT_TAMPERED, "there is no audit log here", field=str(directory))
    return paths


@dataclass(frozen=True, slots=True)
class Commit:
    """Some records and the head over all up to them. `tree` is the log's with these records."""

    records: tuple[bytes, ...]
    head: TreeHead
    tree: Range


class SegmentReader:
    """Reads one segment and checks it against itself. While `commits` runs, `tree` is the log's up to the last commit
    read, `head` its head and `end` its offset in the file; afterwards `torn` is how many bytes lie behind it."""

    def __init__(self, path: Path, key: Ed25519PublicKey) -> None:
        self.path = path
        self.torn = 0
        self.tree = Range()
        self._key = key
        with path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES)
        self.head, self.tree = self._header(line)
        self.end = len(line)

    def commits(self) -> Iterator[Commit]:
        """The segment's commits, each verified before it is given out. Raises `Fault(AUDIT_TAMPERED)`."""
        with self.path.open("rb") as file:
            file.seek(self.end)
            records: list[bytes] = []
            size = 0
            for line in _lines(file):
                size += len(line)
                if size > MAX_COMMIT_BYTES + MAX_LINE_BYTES or len(line) == MAX_LINE_BYTES:
                    raise self._tampered("a commit is longer than any that was written")
                if not line.startswith(HEAD) or not line.endswith(b"\n"):
                    records.append(line[:-1])
                    continue
                yield self._commit(tuple(records), TreeHead.parse(line[:-1]), size)
                records, size = [], 0
            self.torn = size

    def _commit(self, records: tuple[bytes, ...], head: TreeHead, size: int) -> Commit:
        tree = self.tree.extended(map(leaf_hash, records))
        if not all(_stands_at(line, index) for index, line in enumerate(records, self.tree.size)):
            raise self._tampered("a record is not at its place")
        self._check_head(head, tree)
        self.tree, self.head, self.end = tree, head, self.end + size
        return Commit(records, head, tree)

    def _header(self, line: bytes) -> tuple[TreeHead, Range]:
        fields = Fields.from_json(line, "", Reason.AUDIT_TAMPERED, max_bytes=MAX_LINE_BYTES).section("segment")
        head, peaks = TreeHead.read(fields.section("head")), read_hashes(fields, "peaks")
        if encode_header(head, peaks) != line or head.size.bit_count() != len(peaks):
            raise self._tampered("a header that we did not write so")
        tree = Range(head.size, peaks)
        if self.path != segment_path(self.path.parent, tree.size):
            raise self._tampered("the segment bears another's name")
        self._check_head(head, tree)
        return head, tree

    def _check_head(self, head: TreeHead, tree: Range) -> None:
        if head.size != tree.size or head.root != tree.root():
            raise self._tampered(f"records up to {head.size - 1} are not those that were signed")
        if not head.verifies(self._key):
            raise self._tampered(f"the head of {head.size} records is not signed by this key")

    def _tampered(self, detail: str) -> Fault:
        return Fault(Reason.AUDIT_TAMPERED, detail, field=f"{self.path.name}, behind {self.tree.size} records")


def encode_header(head: TreeHead, peaks: tuple[bytes, ...]) -> bytes:
    """A segment's first line, newline included."""
    return canonical({"segment": {"head": head.to_json(), "peaks": [peak.hex() for peak in peaks]}}) + b"\n"


def read_head_file(directory: Path, key: Ed25519PublicKey) -> TreeHead:
    """The signed head beside the segments. Raises `Fault(AUDIT_TAMPERED)`."""
    path = directory / HEAD_FILE
    try:
        with path.open("rb") as file:
            head = TreeHead.parse(file.read(MAX_LINE_BYTES).removesuffix(b"\n"))
    except (OSError, Fault) as error:
        raise Fault(Reason.AUDIT_TAMPERED, "the newest signed head is missing or not one", field=str(path)) from error
    if not head.verifies(key):
        raise Fault(Reason.AUDIT_TAMPERED, "the newest head is not signed by this key", field=str(path))
    return head


def _stands_at(line: bytes, index: int) -> bool:
    place = b',"index":%d,"time":"' % index
    return line.startswith(RECORD) and line[-len(place) - _TIME_AND_END :].startswith(place)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(MAX_LINE_BYTES), b"")

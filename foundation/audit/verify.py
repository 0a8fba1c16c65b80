"""Checking a whole audit log, as a doubter does: with the files and the public key, and best with a head exported
earlier and kept elsewhere.

What this finds: any record, head or header that was changed, removed, added or reordered anywhere behind a signed
head; a log shorter than the head beside it or the exported head; a log that was forked after the exported head. What it
cannot find without an exported head: that the newest commits *and* the head file were both taken back to an earlier,
genuinely signed state; and anything rewritten by someone who held the signing key. With an exported head, nothing
before that head can be rewritten, by anyone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from foundation.audit.merkle import Range, leaf_hash
from foundation.audit.records import TreeHead
from foundation.audit.segments import Commit, SegmentReader, read_head_file, segment_paths
from foundation.faults import Fault
from foundation.reasons import Reason


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a verification. `problem` is empty when the log verifies; otherwise it says where the first
    contradiction is, and `size` how many records before it hold. `torn_bytes` behind the last commit are no
    contradiction: a crash, or a writer at work."""

    size: int
    head: TreeHead | None
    problem: str = ""
    torn_bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.problem


def verify(directory: Path, key: Ed25519PublicKey, since: TreeHead | None = None) -> Report:
    """Read the whole log in `directory` and say whether it is what `key` signed, and an extension of `since`. Raises
    `OSError` when a file cannot be read."""
    walk = Walk(directory, key)
    try:
        witness = read_head_file(directory, key)
        _check_signed(since, key)
        for commit in walk.commits():
            _compare(witness, commit, walk.before, "the head beside the segments")
            _compare(since, commit, walk.before, "the exported head")
        _check_reached(walk.tree, witness, "the head beside the segments")
        _check_reached(walk.tree, since, "the exported head")
    except Fault as fault:
        return Report(walk.tree.size, walk.head, str(fault))
    return Report(walk.tree.size, walk.head, torn_bytes=walk.torn)


class Walk:
    """Goes through all segments in order. While `commits` runs, `before` is the tree before the commit and `tree` the
    one with it."""

    def __init__(self, directory: Path, key: Ed25519PublicKey) -> None:
        self.tree = self.before = Range()
        self.head: TreeHead | None = None
        self.torn = 0
        self._directory = directory
        self._key = key

    def commits(self) -> Iterator[Commit]:
        """Every commit, verified. Raises `Fault(AUDIT_TAMPERED)`."""
        for path in segment_paths(self._directory):
            if self.torn:
                raise Fault(Reason.AUDIT_TAMPERED, "a segment that is not the last is torn", field=path.name)
            reader = SegmentReader(path, self._key)
            if reader.tree != self.tree:
                detail = f"a segment is missing or changed behind {self.tree.size} records"
                raise Fault(Reason.AUDIT_TAMPERED, detail, field=path.name)
            self.head = reader.head
            for commit in reader.commits():
                self.before, self.tree, self.head = self.tree, commit.tree, commit.head
                yield commit
            self.torn = reader.torn


def _compare(known: TreeHead | None, commit: Commit, before: Range, name: str) -> None:
    if known is None or not before.size < known.size <= commit.tree.size:
        return
    part = before.extended(map(leaf_hash, commit.records[: known.size - before.size]))
    if part.root() != known.root:
        raise Fault(Reason.AUDIT_TAMPERED, f"the first {known.size} records are not those of {name}")


def _check_signed(since: TreeHead | None, key: Ed25519PublicKey) -> None:
    if since is not None and not since.verifies(key):
        raise Fault(Reason.AUDIT_TAMPERED, "the exported head is not signed by this log's key")


def _check_reached(tree: Range, known: TreeHead | None, name: str) -> None:
    if known is not None and known.size > tree.size:
        raise Fault(Reason.AUDIT_TAMPERED, f"{known.size - tree.size} records that {name} covers are gone")

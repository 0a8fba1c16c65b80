"""Giving the audit log away, so that others can check it without the machine it was written on.

An export is NDJSON. Its first line names the log and holds the signed head and, when an earlier head was given, the
proof that the log only grew since; then comes one line per record, each with its inclusion proof. `verify_export`
checks one with the public key alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from foundation.audit.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion
from foundation.audit.records import MAX_LINE_BYTES, TreeHead, canonical, log_id, read_hashes
from foundation.audit.verify import Report, Walk
from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.reasons import Reason

VERSION = 1
MAX_EXPORT_LINE = 2 * MAX_LINE_BYTES


def export(directory: Path, key: Ed25519PublicKey, *, first: int = 0, since: TreeHead | None = None) -> Iterator[bytes]:
    """The lines of an export of the records from index `first` on, each with its newline. The log is read twice and its
    tree held in memory (64 bytes per record). Raises `Fault(AUDIT_TAMPERED)`, also in between."""
    tree, head = _tree(directory, key)
    consistency = None if since is None else _consistency(tree, since, head)
    title = {"consistency": consistency, "first": first, "head": head.to_json(), "log": log_id(key), "version": VERSION}
    yield canonical(title) + b"\n"
    for index, line in enumerate(_records(directory, key, head.size)):
        if index >= first:
            proof = [step.hex() for step in tree.inclusion(index, head.size)]
            yield canonical({"proof": proof, "record": json.loads(line)}) + b"\n"


def verify_export(lines: Iterable[bytes], key: Ed25519PublicKey, since: TreeHead | None = None) -> Report:
    """Whether `lines` are an export of the log of `key`, complete from its first index to its head, and, with `since`,
    an extension of that head. Holds one line in memory."""
    checked = 0
    try:
        values = map(_parse, lines)
        head, checked = _read_title(next(values, None), key, since)
        for value in values:
            _check_record(value, checked, head)
            checked += 1
        if checked < head.size:
            raise Fault(Reason.AUDIT_TAMPERED, f"{head.size - checked} records are missing at the end")
    except Fault as fault:
        return Report(checked, None, str(fault))
    return Report(head.size, head)


def _tree(directory: Path, key: Ed25519PublicKey) -> tuple[Tree, TreeHead]:
    walk, tree = Walk(directory, key), Tree()
    for commit in walk.commits():
        for line in commit.records:
            tree.append(leaf_hash(line))
    if walk.head is None:
        raise Fault(Reason.AUDIT_TAMPERED, "there is no audit log here", field=str(directory))
    return tree, walk.head


def _records(directory: Path, key: Ed25519PublicKey, size: int) -> Iterator[bytes]:
    for commit in Walk(directory, key).commits():
        if commit.tree.size > size:  # written after the tree was read
            return
        yield from commit.records


def _consistency(tree: Tree, since: TreeHead, head: TreeHead) -> list[str]:
    if since.size > head.size or tree.root(since.size) != since.root:
        raise Fault(Reason.AUDIT_TAMPERED, "the log is not an extension of the exported head")
    return [step.hex() for step in tree.consistency(since.size, head.size)] if since.size else []


def _parse(line: bytes) -> Any:
    if len(line) > MAX_EXPORT_LINE:
        raise Fault(Reason.AUDIT_TAMPERED, "a line is longer than any that is exported")
    return strict_json(line, "", Reason.AUDIT_TAMPERED)


def _read_title(value: Any, key: Ed25519PublicKey, since: TreeHead | None) -> tuple[TreeHead, int]:
    fields = Fields(value, "", Reason.AUDIT_TAMPERED)
    fields.integer("version", least=VERSION, most=VERSION)
    head = TreeHead.read(fields.section("head"))
    if fields.text("log") != log_id(key) or not head.verifies(key):
        raise Fault(Reason.AUDIT_TAMPERED, "the head is not signed by this key", field="head")
    if since is not None:
        path = read_hashes(fields, "consistency")
        if not since.verifies(key) or not verify_consistency(since.size, head.size, path, since.root, head.root):
            raise Fault(Reason.AUDIT_TAMPERED, "the log is not an extension of the exported head", field="consistency")
    return head, fields.integer("first", most=head.size)


def _check_record(value: Any, index: int, head: TreeHead) -> None:
    fields = Fields(value, f"record {index}", Reason.AUDIT_TAMPERED)
    path, _ = read_hashes(fields, "proof"), fields.section("record")
    if not verify_inclusion(leaf_hash(canonical(value["record"])), index, head.size, path, head.root):
        raise Fault(Reason.AUDIT_TAMPERED, "the record is not in the log", field=fields.path)
    fields.finish()

"""What the record keeps of a question: the part of `input` that policy can read, masked where the schema says so.

Laws held here:
- what policy cannot read is not kept;
- of a leaf that the schema marks `"masked": true` a keyed hash is kept, never the value (`foundation.decisionlog.
  masking`): of it only equality is known.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as File
from typing import Any

from foundation.decisionlog.masking import Mask
from policies.model import Query
from policies.projection import Path, Reads

_SCHEMA = File(__file__).with_name("rego") / "schemas" / "input.json"
_to_json = json.JSONEncoder(allow_nan=False, sort_keys=True, separators=(",", ":")).encode


class Freezer:
    """Makes the kept part of a question for one compiled policy, which can read `reads`."""

    def __init__(self, reads: Reads, mask: Mask) -> None:
        self._tree = _tree(reads)
        self._mask = mask
        self._masked = tuple(path for path in masked_paths() if _meets(path, reads))

    def __call__(self, query: Query) -> bytes:
        """One JSON object. What is no JSON leaves none of it."""
        document = _pick(query.to_input(), self._tree)
        for path in self._masked:
            document = _masked(document, path, self._mask)
        try:
            return _to_json(document).encode()
        except (ValueError, TypeError):
            return b'{"omitted":"not JSON"}'


def kept_part(document: Mapping[str, Any], reads: Iterable[Path]) -> Mapping[str, Any]:
    """What of `document` a policy can see by reading `reads`, in its place."""
    return _pick(document, _tree(reads))


def is_masked(kept: Mapping[str, Any]) -> bool:
    """Whether anything in what was kept of a question is a hash of what policy read."""
    return any(_found(kept, path) for path in masked_paths())


@functools.cache
def masked_paths() -> Reads:
    """The places of `input` that its schema marks as masked."""
    schema = json.loads(_SCHEMA.read_bytes())
    return tuple(sorted(_marked(schema, schema, ())))


def _marked(schema: Mapping[str, Any], node: Mapping[str, Any], path: Path) -> Iterator[Path]:
    if "$ref" in node:
        node = {**schema["$defs"][node["$ref"].removeprefix("#/$defs/")], **node}
    if node.get("masked") is True:
        yield path
        return
    for name, below in node.get("properties", {}).items():
        yield from _marked(schema, below, (*path, name))


def _meets(path: Path, reads: Reads) -> bool:
    return any(_overlap(path, read) for read in reads)


def _overlap(one: Path, other: Path) -> bool:
    """Whether one place is, or is below, the other."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _found(document: Any, path: Path) -> bool:
    """Whether anything stands at `path`."""
    for key in path:
        if not isinstance(document, Mapping) or key not in document:
            return False
        document = document[key]
    return bool(document)


_Tree = dict[str, Any]
"""Keys to what is read below them; None: all of it."""


def _tree(reads: Iterable[Path]) -> _Tree | None:
    """The places as one tree; shorter paths first, so that what is read whole stays whole."""
    tree: _Tree = {}
    for path in sorted(reads, key=len):
        if not path:
            return None
        below: _Tree | None = tree
        for key in path[:-1]:
            below = below.setdefault(key, {}) if below is not None else None
        if below is not None:
            below.setdefault(path[-1], None)
    return tree


def _pick(source: Mapping[str, Any], tree: _Tree | None) -> Mapping[str, Any]:
    """What stands at the leaves of `tree`, and the presence of what stands above them."""
    if tree is None:
        return source
    return {
        key: source[key] if below is None else _pick(source[key], below)
        for key, below in tree.items()
        if key in source and (below is None or isinstance(source[key], Mapping))
    }


def _masked(value: Any, path: Path, mask: Mask) -> Any:
    """`value` with every leaf at or below `path` masked."""
    if path:
        if not isinstance(value, Mapping) or path[0] not in value:
            return value
        return {**value, path[0]: _masked(value[path[0]], path[1:], mask)}
    if isinstance(value, Mapping):
        return {key: _masked(item, (), mask) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, (), mask) for item in value]
    return mask.value(value)

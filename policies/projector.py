"""The cache key of a query: canonical, type-preserving bytes of what policy can read of it.

Laws held here:
- two queries with one key have one projection: equal values of equal types; 1, 1.0 and true differ, missing is not
  null;
- the key is taken from the query's fields, since making the document costs more than looking up an answer. What no
  field is known for is taken from the document.

Bytes are those of `marshal`, version 2: it tells all types apart, spells every value in one way (later versions do
not), and refuses subclasses, for which there is no key and hence no cached answer.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from policies.model import Query
from policies.projection import Path, Reads

_MARSHAL_VERSION = 2

# Where each leaf of the document comes from. An enumeration's `_value_` is its value without a property's cost.
_IDENTITY_FIELDS: Mapping[Path, tuple[str, ...]] = {
    ("id",): ("id.trust_domain", "id.kind._value_", "id.name"),
    ("kind",): ("id.kind._value_",),
    ("name",): ("id.name",),
    ("roles",): ("roles",),
    ("tier",): ("tier",),
    ("region",): ("region",),
    ("site",): ("site",),
    ("segment",): ("segment",),
}
_POSTURE_FIELDS: Mapping[Path, str] = {("attestation",): "attestation._value_", ("verdict",): "verdict._value_"}
_REQUEST_FIELDS = ("method", "action", "host", "path", "query", "upgrade")
_PLAIN_FIELDS: Mapping[Path, tuple[str, ...]] = {
    ("now",): ("now",),
    ("route",): ("route",),
    ("staleness",): ("staleness._value_",),
    **{("request", name): (f"request.{name}",) for name in _REQUEST_FIELDS},
}
# Objects that stand in the document as they stand in the query.
_BRANCHES: Mapping[Path, Callable[[Query], Any]] = {
    ("identity", "labels"): attrgetter("identity.labels"),
    ("identity", "versions"): attrgetter("identity.versions"),
}


def canonical(value: Any) -> Any:
    """`value`, a JSON value, as what `marshal` spells in one way: lists and objects become tagged tuples."""
    if isinstance(value, Mapping):
        return ("o", *((key, canonical(value[key])) for key in sorted(value)))
    if isinstance(value, list | tuple):
        return ("a", *(canonical(item) for item in value))
    return value


def project(document: Any, path: Path) -> Any:
    """What of `document` a policy can see by reading `path`: how far the path leads, and all that stands at its end."""
    for depth, key in enumerate(path):
        if not isinstance(document, Mapping):
            return ("no object", depth)
        if key not in document:
            return ("missing", depth)
        document = document[key]
    return ("value", canonical(document))


class Projector:
    """Makes keys for one compiled policy. `digest` is that of its code and data."""

    def __init__(self, digest: str, entrypoint: str, reads: Reads) -> None:
        self._prefix = marshal.dumps((digest, entrypoint), _MARSHAL_VERSION)
        own, target, rest = _sources(reads)
        self._own = attrgetter("identity.epoch", "identity.epoch", *own)  # two names at least give a tuple
        self._target = attrgetter("target.epoch", "target.epoch", *target) if target else None
        self._rest = tuple(_below(path) for path in rest)

    def key(self, query: Query) -> bytes | None:
        """The key of `query`; None when it holds something that has no canonical bytes."""
        values: tuple[Any, ...] = self._own(query)
        if self._target is not None:
            absent = query.target is None or query.target_posture is None
            values += ((),) if absent else (self._target(query),)
        if self._rest:
            values += tuple(getter(query) for getter in self._rest)
        try:
            return self._prefix + marshal.dumps(values, _MARSHAL_VERSION)
        except ValueError:
            return None


def _sources(reads: Reads) -> tuple[list[str], list[str], list[Path]]:
    """The fields of the query, those of its target, and the paths to take from the document, that hold all `reads`."""
    own, target = _fields("identity", "posture"), _fields("target", "target_posture")
    plain = {**_PLAIN_FIELDS, **own}
    found: tuple[list[str], list[str], list[Path]] = ([], [], [])
    for path in reads:
        if path in plain:
            found[0].extend(plain[path])
        elif path in target:
            found[1].extend(target[path])
        else:
            found[2].append(path)
    return found


def _fields(record: str, posture: str) -> dict[Path, tuple[str, ...]]:
    fields = {(record, *path): tuple(f"{record}.{name}" for name in names) for path, names in _IDENTITY_FIELDS.items()}
    return fields | {(record, *path): (f"{posture}.{name}",) for path, name in _POSTURE_FIELDS.items()}


def _below(path: Path) -> Callable[[Query], Any]:
    """What gives the projection onto `path` for which no field is known."""
    branch = _BRANCHES.get(path[:2])
    if branch is not None:
        return lambda query: project(branch(query), path[2:])
    return lambda query: project(query.to_input(), path)

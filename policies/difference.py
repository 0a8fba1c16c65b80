"""Which queries' answers may change from one compiled policy to the next. Pure values.

Laws held here:
- sound: a query that is not concerned has one answer by both policies, whatever they say;
- when the code changed, every query is concerned. Otherwise those are that can read a place of the data whose content
  changed (`policies.projection`); 1, 1.0 and true differ, missing is not null.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from foundation.identity import IdentityRecord
from policies.engine import CompiledPolicy
from policies.model import Query
from policies.projection import DataPath, Path

_ROUTE: Path = ("route",)
_ENDS = ("identity", "target")
_PLAIN = ("tier", "region", "site", "segment")
MISSING = object()


class PolicyDifference:
    """From `before` to `after`.

    routes: the names of the routes whose queries may be concerned; None when those of any route may be.
    """

    def __init__(self, before: CompiledPolicy, after: CompiledPolicy) -> None:
        self._before, self._after = before.data, after.data
        self._known: dict[tuple[str, ...], bool] = {}
        same_code = before.rego == after.rego and before.data_reads == after.data_reads
        paths: tuple[DataPath, ...] = after.data_reads if same_code else ((),)
        # A place whose ground part did not change concerns nobody.
        self._paths = tuple(path for path in paths if not same_code or self._changed(_ground(path)))
        self._everything = any(not path for path in self._paths)
        places = {key for path in self._paths for key in path if not isinstance(key, str)}
        self._readers = {place: reader(place) for place in places}
        self.routes = self._routes()

    def concerns(self, query: Query) -> bool:
        """Whether the answer to `query` may be another than before."""
        if self._everything:
            return True
        return any(self._differs(path, query) for path in self._paths)

    def _routes(self) -> frozenset[str] | None:
        found: set[str] = set()
        for path in self._paths:
            ground = _ground(path)
            if path[len(ground) : len(ground) + 1] != (_ROUTE,):
                return None
            names = {*_keys(_at(self._before, ground)), *_keys(_at(self._after, ground))}
            found.update(name for name in names if self._changed((*ground, name)))
        return frozenset(found)

    def _differs(self, path: DataPath, query: Query) -> bool:
        """Whether this query can see a change at `path`. Where its `input` has nothing, nothing is looked up: all that
        can be seen is whether there is something to look it up in. Where that is no string, all that is there is meant.
        """
        found: list[str] = []
        for key in path:
            value = key if isinstance(key, str) else self._readers[key](query)
            if value is MISSING:
                return (_at(self._before, tuple(found)) is MISSING) != (_at(self._after, tuple(found)) is MISSING)
            if not isinstance(value, str):
                break
            found.append(value)
        return self._changed(tuple(found))

    def _changed(self, path: tuple[str, ...]) -> bool:
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = _spelled(_at(self._before, path)) != _spelled(_at(self._after, path))
        return known


def _ground(path: DataPath) -> tuple[str, ...]:
    """The part of `path` that needs no query."""
    found: list[str] = []
    for key in path:
        if not isinstance(key, str):
            break
        found.append(key)
    return tuple(found)


def reader(place: Path) -> Callable[[Query], object]:
    """What stands at `place` of a query's document; `MISSING` for nothing. For places that policies mostly look data up
    by the document is not made: it costs more than all else here."""
    if place == _ROUTE:
        return attrgetter("route")
    if len(place) == 2 and place[0] in _ENDS and place[1] in _PLAIN:
        return _end_reader(place[0], attrgetter(place[1]))
    if len(place) == 3 and place[0] in _ENDS and place[1] == "labels":
        return _end_reader(place[0], lambda record: record.labels.get(place[2], MISSING))
    return lambda query: _at(query.to_input(), place)


def _end_reader(end: str, read: Callable[[IdentityRecord], object]) -> Callable[[Query], object]:
    if end == "identity":
        return lambda query: read(query.identity)
    return lambda query: MISSING if query.target is None or query.target_posture is None else read(query.target)


def _at(document: object, path: Path) -> object:
    for key in path:
        if not isinstance(document, Mapping) or key not in document:
            return MISSING
        document = document[key]
    return document


def _keys(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, Mapping) else ()


def _spelled(value: Any) -> bytes:
    """Bytes that equal values of equal types alone have (see `policies.projector`). Objects whose keys stand in another
    order look different, which is the safe side."""
    return b"" if value is MISSING else marshal.dumps(value, 2)

"""Which queries' answers may change from one compiled policy to the next. Pure values.

Laws held here:
- sound: a query that is not concerned has one answer by both policies, whatever they say;
- when the code changed, every query is concerned. Otherwise those are that can read a place of the data whose content
  changed (`policies.projection`); 1, 1.0 and true differ, missing is not null.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from typing import Any

from policies.engine import CompiledPolicy
from policies.model import Query
from policies.projection import DataPath, Path

_ROUTE: Path = ("route",)
_MISSING = object()


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
            value = key if isinstance(key, str) else _value(query, key)
            if value is _MISSING:
                return (_at(self._before, tuple(found)) is _MISSING) != (_at(self._after, tuple(found)) is _MISSING)
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


def _value(query: Query, place: Path) -> object:
    if place == _ROUTE:  # nearly every policy's, and the document costs more than all else here
        return query.route
    return _at(query.to_input(), place)


def _at(document: object, path: Path) -> object:
    for key in path:
        if not isinstance(document, Mapping) or key not in document:
            return _MISSING
        document = document[key]
    return document


def _keys(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, Mapping) else ()


def _spelled(value: Any) -> bytes:
    """Bytes that equal values of equal types alone have (see `policies.projector`). Objects whose keys stand in another
    order look different, which is the safe side."""
    return b"" if value is _MISSING else marshal.dumps(value, 2)

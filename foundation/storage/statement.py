"""Statements that are made once and run very often.

SQLAlchemy spends several times longer on carrying out a small statement than SQLite does: it finds the compiled form by
a key of the whole statement, and makes a result that could do much more than is asked of it. A `Statement` is compiled
once for each set of parameters; `plain` then gives text and values for a driver as they are, and rows come back as
named tuples. Everything else stays SQLAlchemy's: what is written, the types, the dialects.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect, Insert, Select, Update
from sqlalchemy.types import TypeEngine

_Convert = Callable[[Any], Any] | None


class Statement:
    """`select`, `insert` or `update`, its values bound by name (`bindparam`); no list is bound to one name."""

    def __init__(self, clause: Select[Any] | Insert | Update) -> None:
        self.clause = clause
        self._plain: dict[tuple[str, ...], Plain] = {}

    def plain(self, names: tuple[str, ...], dialect: Dialect) -> Plain:
        """What to give a driver of `dialect`, of which there is one in a process, for parameters of these names."""
        found = self._plain.get(names)
        if found is None:
            found = self._plain[names] = _compile(self.clause, names, dialect)
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """What came back: all rows, by attributes named as their columns; `rowcount` of those that were written."""

    rows: list[Any]
    rowcount: int

    def first(self) -> Any:
        """The first row; None where there is none."""
        return self.rows[0] if self.rows else None

    def all(self) -> list[Any]:
        return self.rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


@dataclass(frozen=True, slots=True)
class Plain:
    """A compiled statement: its text, its values in order, and how values change on their way in and out."""

    text: str
    _values: tuple[tuple[str, Any, _Convert], ...]  # name, value where none is given, conversion
    _row: Callable[[Iterable[Any]], Any] | None
    _columns: tuple[tuple[int, Callable[[Any], Any]], ...]  # of those columns that are converted

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """The values in the order of their places."""
        return [
            value if convert is None else convert(value)
            for value, convert in ((given.get(name, own), convert) for name, own, convert in self._values)
        ]

    def rows(self, found: list[tuple[Any, ...]]) -> list[Any]:
        """What the driver fetched, as rows with names."""
        if self._row is None:
            return []
        return [self._row(self._converted(row)) for row in found]

    def _converted(self, row: tuple[Any, ...]) -> Iterable[Any]:
        if not self._columns:
            return row
        changed = list(row)
        for place, convert in self._columns:
            changed[place] = convert(changed[place])
        return changed


def _compile(clause: Select[Any] | Insert | Update, names: tuple[str, ...], dialect: Dialect) -> Plain:
    compiled: Any = clause.compile(dialect=dialect, column_keys=list(names))
    own = compiled.params
    values = tuple((name, own[name], _inward(compiled.binds[name].type, dialect)) for name in compiled.positiontup)
    columns = list(clause.selected_columns if isinstance(clause, Select) else clause.exported_columns)
    converts = ((place, _outward(column.type, dialect)) for place, column in enumerate(columns))
    row: Any = namedtuple("Row", [str(column.key) for column in columns]) if columns else None  # made here
    return Plain(
        compiled.string,
        values,
        row and row._make,
        tuple((place, convert) for place, convert in converts if convert is not None),
    )


def _inward(kind: TypeEngine[Any], dialect: Dialect) -> _Convert:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _outward(kind: TypeEngine[Any], dialect: Dialect) -> _Convert:
    return kind.dialect_impl(dialect).result_processor(dialect, None)

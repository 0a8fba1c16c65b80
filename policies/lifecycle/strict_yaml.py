"""YAML as the workspace uses it: a small, strict part of YAML 1.2 in which everything has a line.

Laws held here:
- no anchors, aliases, tags, merge keys or second documents; no key twice in one mapping;
- size, depth and count are bounded before anything is built;
- a plain scalar is true, false, null, a whole number, or text: `no` is text, and so is a date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml as pyyaml

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

MAX_BYTES = 1 << 20
MAX_EVENTS = 200_000  # some six seconds of parsing; five thousand grants take half of them
MAX_DEPTH = 16
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed file. `lines` maps the path of every value (`grants[3].paths`) to its line, counted from 1."""

    file: str
    value: Any
    lines: dict[str, int]

    def fields(self) -> Fields:
        """The top-level mapping under strict reading. Raises `Fault(POLICY_DATA_INVALID)`, to be `located`."""
        if not isinstance(self.value, dict):
            raise Fault(Reason.POLICY_DATA_INVALID, "expected a mapping")
        return Fields(self.value, "", Reason.POLICY_DATA_INVALID)

    def located(self, fault: Fault) -> Fault:
        """`fault`, whose field is a path in this document, as a fault at file and line."""
        where = f"{self.file}:{self.line(fault.field)}"
        field = f"{where} {fault.field}" if fault.field else where
        return Fault(Reason.POLICY_DATA_INVALID, fault.detail or fault.reason.meaning, field=field)

    def line(self, path: str) -> int:
        """The line of the value at `path`, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 1)


def parse_yaml(raw: bytes, file: str) -> Document:
    """The one document in `raw`. Raises `Fault(POLICY_DATA_INVALID)` naming file and line."""
    if len(raw) > MAX_BYTES:
        raise _fault(file, 1, f"{len(raw)} bytes, at most {MAX_BYTES} are allowed")
    try:
        return _Builder(file, raw.decode("utf-8")).document()
    except UnicodeDecodeError as error:
        raise _fault(file, raw.count(b"\n", 0, error.start) + 1, "not UTF-8") from None
    except pyyaml.reader.ReaderError as error:
        raise _fault(file, raw.decode("utf-8").count("\n", 0, error.position) + 1, str(error.reason)) from None
    except pyyaml.MarkedYAMLError as error:
        raise _fault(file, error.problem_mark.line + 1 if error.problem_mark else 1, str(error.problem)) from None


class _Builder:
    """Builds values from the parser's events, which it counts."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._events: Iterator[pyyaml.Event] = pyyaml.parse(text, Loader=pyyaml.SafeLoader)
        self._left = MAX_EVENTS
        self._lines: dict[str, int] = {}

    def document(self) -> Document:
        self._next()  # the stream begins
        start = self._next()
        if isinstance(start, pyyaml.StreamEndEvent):
            return Document(self._file, None, {})
        value = self._value(self._next(), "", MAX_DEPTH)
        self._next()  # the document ends
        after = self._next()
        if not isinstance(after, pyyaml.StreamEndEvent):
            raise self._fault(after, "a second document; one is allowed")
        return Document(self._file, value, self._lines)

    def _next(self) -> pyyaml.Event:
        self._left -= 1
        event = next(self._events)
        if self._left < 0:
            raise self._fault(event, f"more than {MAX_EVENTS} values")
        if isinstance(event, pyyaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._fault(event, "anchors and aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise self._fault(event, "tags are not allowed")
        return event

    def _value(self, event: pyyaml.Event, path: str, depth: int) -> Any:
        if depth == 0:
            raise self._fault(event, f"nested deeper than {MAX_DEPTH}")
        self._lines[path] = _line(event)
        if isinstance(event, pyyaml.MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, pyyaml.SequenceStartEvent):
            return self._sequence(path, depth)
        assert isinstance(event, pyyaml.ScalarEvent)  # noqa: S101 - nothing else can stand here in PyYAML's grammar
        return _scalar(event)

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := self._next(), pyyaml.MappingEndEvent):
            if not isinstance(event, pyyaml.ScalarEvent):
                raise self._fault(event, "a key must be plain text")
            key = event.value
            if key in found:
                raise self._fault(event, f"the key {key[:64]!r} stands twice")
            found[key] = self._value(self._next(), f"{path}.{key}" if path else key, depth - 1)
        return found

    def _sequence(self, path: str, depth: int) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := self._next(), pyyaml.SequenceEndEvent):
            found.append(self._value(event, f"{path}[{len(found)}]", depth - 1))
        return found

    def _fault(self, event: pyyaml.Event, detail: str) -> Fault:
        return _fault(self._file, _line(event), detail)


def _line(event: pyyaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark else 1


def _scalar(event: pyyaml.ScalarEvent) -> str | int | bool | None:
    text: str = event.value
    if event.style is not None:  # quoted or a block: text
        return text
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if _WHOLE_NUMBER.fullmatch(text) else text


def _fault(file: str, line: int, detail: str) -> Fault:
    return Fault(Reason.POLICY_DATA_INVALID, detail, field=f"{file}:{line}")

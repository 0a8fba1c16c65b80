"""Finding decisions again, in a log that may still be written. Synchronous: callers on an event loop use a thread.

A look-up reads the index of a segment or two and one block of some ten kilobytes, however much is on record; only the
segment that grows is searched through.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from foundation.decisionlog.blocks import Index, may_have_cuts, raw_id, read_block, read_index, text_id
from foundation.decisionlog.folders import folders
from foundation.decisionlog.ids import is_decision_id
from foundation.decisionlog.line import CUT_PREFIX, ID_PREFIX
from foundation.decisionlog.segments import CLOSED_SUFFIX, first_id, segment_paths
from foundation.faults import Fault
from foundation.reasons import Reason

T = TypeVar("T")
Record = Mapping[str, Any]
MAX_RECENT = 1000
MAX_LATER = 1024  # segments after a permit's own in which the end of its stream is looked for


def find(directory: Path, decision_id: str) -> Record:
    """The decision of this ID, its input in place. Raises `Fault(NOT_FOUND | FILE_UNREADABLE)`."""
    if not is_decision_id(decision_id):
        raise Fault(Reason.NOT_FOUND, "not a decision ID: d- and 28 hex digits", field="id")
    for folder in _folders(directory):
        for path in _candidates(_segments(folder), decision_id):
            record = _read(path, lambda segment: _record(segment, segment.line(decision_id)))
            if record is not None:
                return record
    raise Fault(Reason.NOT_FOUND, "no decision of this ID is on record here, or no longer", field="id")


def recent(directory: Path, limit: int) -> list[Record]:
    """The newest decisions, the newest first; at most `MAX_RECENT`. Raises `Fault(FILE_UNREADABLE)`."""
    limit = min(limit, MAX_RECENT)
    found = [record for folder in _folders(directory) for record in _recent_in(folder, limit)]
    return sorted(found, key=lambda record: str(record["id"]), reverse=True)[:limit]


def _recent_in(folder: Path, limit: int) -> list[Record]:
    found: list[Record] = []
    for path in reversed(_segments(folder)):
        found += _read(path, partial(_newest, limit=limit - len(found)))
        if len(found) >= limit:
            break
    return found


def find_cut(directory: Path, permit_id: str) -> Record | None:
    """The decision that ended the stream which ran by `permit_id`; None when there is none, or it lies more than
    `MAX_LATER` segments behind. Raises `Fault(FILE_UNREADABLE)`."""
    found = (_cut_in(folder, permit_id) for folder in _folders(directory))
    return next((record for record in found if record is not None), None)


def _cut_in(folder: Path, permit_id: str) -> Record | None:
    paths = _segments(folder)
    begin = max(0, bisect_right(paths, permit_id, key=first_id) - 2)
    for path in paths[begin : begin + MAX_LATER]:
        record = _read(path, lambda segment: _record(segment, segment.cut(permit_id)))
        if record is not None:
            return record
    return None


class _Segment(Protocol):
    """A segment, as far as it is searched here. Lines come without their newline."""

    def line(self, decision_id: str) -> bytes | None: ...

    def newest(self, limit: int) -> list[bytes]: ...

    def cut(self, permit_id: str) -> bytes | None: ...


class _Lines:
    """Lines as they are, newline included: of the segment that grows, or of one block."""

    def __init__(self, lines: bytes) -> None:
        self._lines = lines
        self._end = lines.rfind(b"\n") + 1  # a writer may be at work

    def line(self, decision_id: str) -> bytes | None:
        # A line begins so and nothing inside one can: JSON holds no raw newline.
        start = (ID_PREFIX + decision_id).encode("ascii")
        at = 0 if self._lines.startswith(start) else self._lines.find(b"\n" + start) + 1
        return self._line_at(at) if self._lines.startswith(start, at) else None

    def newest(self, limit: int) -> list[bytes]:
        found, end = list[bytes](), self._end
        while end > 0 and len(found) < limit:
            begin = self._lines.rfind(b"\n", 0, end - 1) + 1
            found.append(self._lines[begin : end - 1])
            end = begin
        return found

    def cut(self, permit_id: str) -> bytes | None:
        at = self._lines.find(b'%s%s"}\n' % (CUT_PREFIX, permit_id.encode("ascii")), 0, self._end)
        return self._line_at(self._lines.rfind(b"\n", 0, at) + 1) if at >= 0 else None

    def _line_at(self, begin: int) -> bytes | None:
        end = self._lines.find(b"\n", begin)
        return self._lines[begin:end] if end >= 0 else None


class _Closed:
    """A closed segment, read block by block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _index(self) -> Index:
        return read_index(self._path)

    def line(self, decision_id: str) -> bytes | None:
        for block in self._index.holding(decision_id):
            line = _Lines(read_block(self._path, block)).line(decision_id)
            if line is not None:
                return line
        return None

    def newest(self, limit: int) -> list[bytes]:
        found: list[bytes] = []
        for block in reversed(self._index.blocks):
            if len(found) >= limit:
                break
            found += _Lines(read_block(self._path, block)).newest(limit - len(found))
        return found

    def cut(self, permit_id: str) -> bytes | None:
        if not may_have_cuts(self._path):
            return None
        wanted = raw_id(permit_id)
        by = next((cut.decision for cut in self._index.cuts if cut.permit == wanted), None)
        return self.line(text_id(by)) if by is not None else None


def _candidates(paths: list[Path], decision_id: str) -> Iterator[Path]:
    """Where the ID must be by its time, then the neighbours: a decision may be recorded just after a later one."""
    place = bisect_right(paths, decision_id, key=first_id) - 1
    for index in (place, place + 1, place - 1):
        if 0 <= index < len(paths):
            yield paths[index]


def _newest(segment: _Segment, limit: int) -> list[Record]:
    return [record for line in segment.newest(limit) if (record := _record(segment, line)) is not None]


def _record(segment: _Segment, line: bytes | None) -> Record | None:
    """The record of this line, its input in place; of no line none."""
    if line is None:
        return None
    record: dict[str, Any] = json.loads(line)
    source = record.get("input_of")
    first = segment.line(source) if isinstance(source, str) and is_decision_id(source) else None
    if first is not None:
        record["input"] = json.loads(first).get("input")
    return record


def _folders(directory: Path) -> list[Path]:
    try:
        return folders(directory)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "", field=str(directory)) from error


def _read(path: Path, take: Callable[[_Segment], T]) -> T:
    """What `take` finds in the segment, which may have been closed or dropped since it was listed. Raises
    `Fault(FILE_UNREADABLE)`."""
    closed = path.with_name(first_id(path) + CLOSED_SUFFIX)
    try:
        try:
            return take(_Closed(path) if path == closed else _Lines(path.read_bytes()))
        except FileNotFoundError:
            return take(_Closed(closed) if closed.exists() else _Lines(b""))
    except (OSError, EOFError) as error:
        raise Fault(Reason.FILE_UNREADABLE, str(error), field=str(path)) from error


def _segments(directory: Path) -> list[Path]:
    try:
        return segment_paths(directory)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "", field=str(directory)) from error

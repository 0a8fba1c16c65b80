"""Finding decisions again, in a log that may still be written. Synchronous: callers on an event loop use a thread."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foundation.decisionlog.ids import is_decision_id
from foundation.decisionlog.line import ID_PREFIX
from foundation.decisionlog.segments import first_id, read_segment, segment_paths
from foundation.faults import Fault
from foundation.reasons import Reason

Record = Mapping[str, Any]
MAX_RECENT = 1000


def find(directory: Path, decision_id: str) -> Record:
    """The decision of this ID, its input in place. Raises `Fault(NOT_FOUND | FILE_UNREADABLE)`."""
    if not is_decision_id(decision_id):
        raise Fault(Reason.NOT_FOUND, "not a decision ID: d- and 28 hex digits", field="id")
    for path in _candidates(_segments(directory), decision_id):
        lines = _read(path)
        line = _line(lines, decision_id)
        if line is not None:
            return _resolve(json.loads(line), lines)
    raise Fault(Reason.NOT_FOUND, "no decision of this ID is on record here, or no longer", field="id")


def recent(directory: Path, limit: int) -> list[Record]:
    """The newest decisions, the newest first; at most `MAX_RECENT`. Raises `Fault(FILE_UNREADABLE)`."""
    limit = min(limit, MAX_RECENT)
    found: list[Record] = []
    for path in reversed(_segments(directory)):
        lines = _read(path)
        newest = lines.splitlines()[: -(limit - len(found)) - 1 : -1]
        found += [_resolve(json.loads(line), lines) for line in newest]
        if len(found) >= limit:
            break
    return found


def _candidates(paths: list[Path], decision_id: str) -> Iterator[Path]:
    """Where the ID must be by its time, then the neighbours: a decision may be recorded just after a later one."""
    place = bisect_right(paths, decision_id, key=first_id) - 1
    for index in (place, place + 1, place - 1):
        if 0 <= index < len(paths):
            yield paths[index]


def _line(lines: bytes, decision_id: str) -> bytes | None:
    # A line begins so and nothing inside one can: JSON holds no raw newline.
    start = (ID_PREFIX + decision_id).encode("ascii")
    at = 0 if lines.startswith(start) else lines.find(b"\n" + start) + 1
    return lines[at : lines.find(b"\n", at)] if lines.startswith(start, at) else None


def _resolve(record: dict[str, Any], lines: bytes) -> Record:
    source = record.get("input_of")
    line = _line(lines, source) if isinstance(source, str) else None
    if line is not None:
        record["input"] = json.loads(line).get("input")
    return record


def _segments(directory: Path) -> list[Path]:
    try:
        return segment_paths(directory)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "", field=str(directory)) from error


def _read(path: Path) -> bytes:
    """The segment, which may have been closed or dropped since it was listed."""
    try:
        return read_segment(path)
    except FileNotFoundError:
        closed = path.with_name(path.name.removesuffix(".gz") + ".gz")
        return read_segment(closed) if closed.exists() else b""
    except (OSError, EOFError) as error:
        raise Fault(Reason.FILE_UNREADABLE, str(error), field=str(path)) from error

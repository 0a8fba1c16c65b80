"""The kernel's runtime measurement log (Linux IMA), sent entry by entry: each once.

The log may grow at any moment. The kernel adds an entry to it before it extends PCR 10, so that a log which is read
after a quote holds all that the quote sums up, and perhaps more: it is cut where it replays to the quoted value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.measurements import MAX_MEASUREMENTS_BYTES, next_entry


@dataclass(frozen=True, slots=True)
class Position:
    """The place behind `count` entries, which take `octets` octets and have made `value` of PCR 10."""

    count: int
    octets: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """The entries from one position to the next."""

    since: Position
    entries: bytes
    until: Position


def start(size: int) -> Position:
    """The place before the first entry, for a bank whose digests have `size` octets."""
    return Position(0, 0, bytes(size))


def read_until(path: Path, since: Position, bank: str, pcr_10: bytes) -> Reading | None:
    """The entries behind `since` up to the one that makes `pcr_10` of PCR 10; None where the log never comes to that. A
    kernel that measures nothing has no log. Raises `Fault(FILE_UNREADABLE | MEASUREMENTS_MALFORMED)`, and
    `Fault(MESSAGE_TOO_LARGE)` for more than one message takes."""
    raw = _read(path, since.octets)
    at, count, value = 0, since.count, since.value
    while value != pcr_10:
        try:
            entry = next_entry(raw, at)
        except ValueError as error:
            raise Fault(Reason.MEASUREMENTS_MALFORMED, str(error), field=str(path)) from None
        if entry is None and len(raw) > MAX_MEASUREMENTS_BYTES:
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"more than {MAX_MEASUREMENTS_BYTES} bytes", field=str(path))
        if entry is None:
            return None
        at, count, value = entry.end, count + 1, entry.extend(bank, value)
    return Reading(since, raw[:at], Position(count, since.octets + at, value))


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            pieces, left = [], MAX_MEASUREMENTS_BYTES + 1
            while left and (piece := file.read(left)):  # securityfs gives a page or so at a time
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error

"""A node's records on the wire: what it noted while nobody could be told, delivered in order, once (`POST
/v1/node/records`).

A batch is lines of JSON in UTF-8, each with its newline. The first is the head, the others are records:

    {"version":1,"incarnation":"<32 hex>","first":7,"chain":"<64 hex>"}
    {"at":1800000000.0,"kind":"decision","body":{…}}

Records of one `incarnation` (of the node's outbox, made anew when that is) are counted from 1; `first` is the number of
the first one here. `chain` is a hash over all records before it, in order: with it the authority knows that this is the
history that it has the beginning of. Who delivers repeats a batch until it is answered; who takes it skips what it has.
The answer is a receipt, `{"taken":<number of the last>,"chain":"<64 hex>"}`.

`kind` says what a record is, and what may be dropped for it where space is short: `health`, then `decision`, then
`audit`. A `gap` tells that records were dropped, how many of which kind.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

VERSION = 1
MAX_RECORD_BYTES = 16 * 1024
MAX_BATCH_RECORDS = 512
MAX_BATCH_BYTES = 256 * 1024
MAX_RECEIPT_BYTES = 1024
CHAIN_START = bytes(32)
_MAX_HEAD_BYTES = 1024
_PURPOSE = b"sallyport node record 1\0"
_INCARNATION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_CHAIN = re.compile(r"[0-9a-f]{64}", re.ASCII)


class RecordKind(StrEnum):
    """What a record is of."""

    HEALTH = "health"
    DECISION = "decision"
    AUDIT = "audit"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One record. `at` is the node's time, seconds since the Unix epoch; `body` holds plain JSON values and never a
    secret."""

    at: float
    kind: RecordKind
    body: Mapping[str, Any]

    def encode(self) -> bytes:
        """The record's line, without its newline. Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)`: whatever comes
        out of here can be read again, for a line that nobody can read would hold up all behind it."""
        document = {"at": self.at, "kind": self.kind.value, "body": self.body}
        try:
            line = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError):
            raise Fault(Reason.MESSAGE_MALFORMED, "a record holds plain JSON values", field="record.body") from None
        self.parse(line)
        return line

    @classmethod
    def parse(cls, line: bytes) -> NodeRecord:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)`."""
        fields = Fields.from_json(line, "record", Reason.MESSAGE_MALFORMED, max_bytes=MAX_RECORD_BYTES)
        record = cls(fields.number("at"), RecordKind(fields.one_of("kind", tuple(RecordKind))), fields.document("body"))
        fields.finish()
        return record


def chained(chain: bytes, lines: Iterable[bytes]) -> bytes:
    """The hash over everything that `chain` is over, and `lines` behind that."""
    for line in lines:
        chain = hashlib.sha256(_PURPOSE + chain + line).digest()
    return chain


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Some records in order. `chain` is over those before the `first`."""

    incarnation: str
    first: int
    chain: bytes
    lines: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The bytes on the wire."""
        head = {"version": VERSION, "incarnation": self.incarnation, "first": self.first, "chain": self.chain.hex()}
        return b"".join(line + b"\n" for line in (json.dumps(head, separators=(",", ":")).encode(), *self.lines))

    @classmethod
    def parse(cls, raw: bytes) -> RecordBatch:
        """The batch in `raw`, each of whose lines is a record. Raises `Fault(MESSAGE_MALFORMED |
        MESSAGE_TOO_LARGE)`."""
        if len(raw) > MAX_BATCH_BYTES:
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"a batch has at most {MAX_BATCH_BYTES} bytes", field="batch")
        head, *lines = raw.split(b"\n")
        if not lines or lines.pop() or not 0 < len(lines) <= MAX_BATCH_RECORDS:
            raise Fault(Reason.MESSAGE_MALFORMED, f"expected 1 to {MAX_BATCH_RECORDS} whole lines", field="batch")
        fields = Fields.from_json(head, "batch", Reason.MESSAGE_MALFORMED, max_bytes=_MAX_HEAD_BYTES)
        fields.integer("version", least=VERSION, most=VERSION)
        incarnation = _matching(fields, "incarnation", _INCARNATION)
        batch = cls(incarnation, fields.integer("first", least=1), _chain(fields), tuple(lines))
        fields.finish()
        batch.records()
        return batch

    def records(self) -> tuple[NodeRecord, ...]:
        """Raises as `parse`."""
        return tuple(NodeRecord.parse(line) for line in self.lines)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the authority has of an incarnation: all records up to the number `taken`, over which `chain` is."""

    taken: int
    chain: bytes

    def encode(self) -> bytes:
        return json.dumps({"taken": self.taken, "chain": self.chain.hex()}, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Receipt:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)`."""
        fields = Fields.from_json(raw, "receipt", Reason.MESSAGE_MALFORMED, max_bytes=MAX_RECEIPT_BYTES)
        receipt = cls(fields.integer("taken"), _chain(fields))
        fields.finish()
        return receipt


def _chain(fields: Fields) -> bytes:
    return bytes.fromhex(_matching(fields, "chain", _CHAIN))


def _matching(fields: Fields, name: str, pattern: re.Pattern[str]) -> str:
    text = fields.text(name, max_length=64)
    if not pattern.fullmatch(text):
        raise fields.fault(name, "expected lower-case hex digits, all of them")
    return text

"""The bytes of the audit log: records and signed tree heads, one line of canonical JSON each.

Canonical: UTF-8 with everything beyond ASCII escaped, keys sorted, no spaces, no NaN. A leaf of the tree is a record's
line without its newline, so there is one reading of it. A head is read back only if writing it gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from foundation.audit.merkle import EMPTY_ROOT, HASH_BYTES, Range
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.ports import AuditEvent
from foundation.reasons import Reason

MAX_NAME = 512
MAX_DETAIL_BYTES = 16 * 1024
MAX_LINE_BYTES = 64 * 1024  # with every name at its longest and escaped
RECORD, HEAD, SEGMENT = b'{"event":', b'{"head":', b'{"segment":'
_LABEL = "sallyport audit head v1"
_SIGNATURE_BYTES = 64
_NAMES = ("kind", "actor", "subject", "reason", "trace")


def canonical(value: object) -> bytes:
    """`value` as canonical JSON. Raises `TypeError` or `ValueError` for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def encode_event(event: AuditEvent) -> bytes:
    """The event's canonical JSON. A detail over `MAX_DETAIL_BYTES` is replaced by its SHA-256 and size: the event
    counts more than its detail. Raises `Fault(AUDIT_FAILED)` for what cannot be recorded."""
    fields = {name: getattr(event, name) for name in _NAMES}
    for name, text in fields.items():
        if len(text) > MAX_NAME:
            raise Fault(Reason.AUDIT_FAILED, f"longer than {MAX_NAME} characters", field=name)
    try:
        line = canonical({**fields, "detail": dict(event.detail)})
        if len(line) <= MAX_DETAIL_BYTES:  # so its detail is no longer either
            return line
        detail = canonical(dict(event.detail))
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault(Reason.AUDIT_FAILED, "the detail is not JSON", internal=str(error)) from error
    if len(detail) > MAX_DETAIL_BYTES:
        omitted = {"omitted_bytes": len(detail), "omitted_sha256": hashlib.sha256(detail).hexdigest()}
        return canonical({**fields, "detail": omitted})
    return line


def encode_record(event: bytes, index: int, now: float) -> bytes:
    """One record's line, without its newline; `event` comes from `encode_event`."""
    return b'%s%s,"index":%d,"time":"%s"}' % (RECORD, event, index, timestamp(now).encode())


def timestamp(now: float) -> str:
    """RFC 3339 §5.6 in UTC with milliseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What the log's key vouches for: at `time` the first `size` records had this `root`."""

    size: int
    time: str
    root: bytes
    signature: bytes = b""

    @classmethod
    def sign(cls, tree: Range, now: float, key: Ed25519PrivateKey) -> TreeHead:
        """The signed head of `tree`."""
        head = cls(tree.size, timestamp(now), tree.root())
        return replace(head, signature=key.sign(head._signed_bytes(key.public_key())))

    def verifies(self, key: Ed25519PublicKey) -> bool:
        """Whether `key` signed this head."""
        try:
            key.verify(self.signature, self._signed_bytes(key))
        except InvalidSignature:
            return False
        return self.size > 0 or self.root == EMPTY_ROOT

    def to_json(self) -> dict[str, Any]:
        return {
            "root": self.root.hex(),
            "signature": base64.b64encode(self.signature).decode(),
            "size": self.size,
            "time": self.time,
        }

    def encode(self) -> bytes:
        """The head's line, without its newline."""
        return canonical({"head": self.to_json()})

    @classmethod
    def parse(cls, line: bytes) -> TreeHead:
        """Raises `Fault(AUDIT_TAMPERED)` unless `line` is exactly what `encode` gives."""
        fields = Fields.from_json(line, "", Reason.AUDIT_TAMPERED, max_bytes=MAX_LINE_BYTES)
        head = cls.read(fields.section("head"))
        if head.encode() != line:
            raise Fault(Reason.AUDIT_TAMPERED, "a head that we did not write so", field="head")
        return head

    @classmethod
    def read(cls, fields: Fields) -> TreeHead:
        """The head in a JSON object. Raises the fault of `fields`."""
        return cls(
            size=fields.integer("size"),
            time=fields.text("time", max_length=32),
            root=read_hash(fields, "root"),
            signature=fields.base64("signature", max_bytes=_SIGNATURE_BYTES),
        )

    def _signed_bytes(self, key: Ed25519PublicKey) -> bytes:
        return "\n".join((_LABEL, log_id(key), str(self.size), self.time, self.root.hex(), "")).encode()


def log_id(key: Ed25519PublicKey) -> str:
    """The log's name: SHA-256 of its public key's SubjectPublicKeyInfo, in hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_hash(fields: Fields, name: str) -> bytes:
    """A SHA-256 in lower-case hex. Raises the fault of `fields`."""
    text = fields.text(name, max_length=2 * HASH_BYTES)
    return _hash(text, fields, name)


def read_hashes(fields: Fields, name: str) -> tuple[bytes, ...]:
    """At most 64 of them. Raises the fault of `fields`."""
    return tuple(_hash(text, fields, name) for text in fields.texts(name, most=64))


def _hash(text: str, fields: Fields, name: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != HASH_BYTES or raw.hex() != text:
        raise fields.fault(name, "expected SHA-256 in lower-case hex")
    return raw

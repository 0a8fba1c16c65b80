"""The feed on the wire: one change a line, each line one JSON object (RFC 8259) in UTF-8, the newest last.

| `type` | fields |
|---|---|
| `revocation` | `number`, `id`, `serial` (lower-case hex; empty for the whole identity), `reason`, `at` |
| `posture` | `number`, `id`, `attestation`, `verdict`, `attested_until`, `at`, perhaps `renewal` |
| `identity` | `number`, `record` (`id`, `state`, `epoch`, `roles`, `tier`, `region`, `site`, `segment`, …), `at` |
| `policy` | `revision`, `bundle` (base64), `at` |
| `heartbeat` | `at`, `numbers`: `policy`, `revocations`, `postures`, `inventory` |

Times are seconds since the Unix epoch, numbers whole and not negative; `at` is when the change was committed, and may
be missing where nobody knows. Who reads is as strict as for any message from outside: an unknown type or field is
refused, for a reader that skips what it does not know skips a revocation one day.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import MAX_SPIFFE_ID_BYTES, SpiffeId
from foundation.identity import (
    AttestationClass,
    Change,
    Heartbeat,
    IdentityChanged,
    IdentityRecord,
    PolicyPublished,
    Posture,
    PostureChanged,
    Renewal,
    Revocation,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = (MAX_BUNDLE_BYTES + 2) // 3 * 4 + 4096
"""With a bundle in it. Any other line has at most `MAX_FACT_BYTES`."""
MAX_FACT_BYTES = 256 * 1024
_MAX_TEXT = 1024
_MAX_SERIAL = 40  # 20 octets (RFC 5280 §4.1.2.2)
_SERIAL = re.compile(r"[0-9a-f]{0,40}", re.ASCII)
_POLICY_PREFIX = b'{"type":"policy",'


def encode_change(change: Change) -> bytes:
    """The line of `change`, its newline included."""
    return json.dumps(_document(change), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def parse_change(line: bytes) -> Change:
    """The change that `line` (without its newline) tells. Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)`."""
    most = MAX_LINE_BYTES if line.startswith(_POLICY_PREFIX) else MAX_FACT_BYTES
    fields = Fields.from_json(line, "change", Reason.MESSAGE_MALFORMED, max_bytes=most)
    read = _READERS[fields.one_of("type", tuple(_READERS))]
    change = read(fields)
    fields.finish()
    return change


def record_document(record: IdentityRecord) -> dict[str, Any]:
    """An identity's record as JSON values."""
    return {
        "id": str(record.id),
        "state": record.state.value,
        "epoch": record.epoch,
        "roles": list(record.roles),
        "tier": record.tier,
        "region": record.region,
        "site": record.site,
        "segment": record.segment,
        "labels": dict(record.labels),
        "versions": dict(record.versions),
    }


def read_record(fields: Fields) -> IdentityRecord:
    """What `record_document` wrote. Raises `Fault` with the reason of `fields`."""
    record = IdentityRecord(
        id=_id(fields),
        state=State(fields.one_of("state", tuple(State))),
        epoch=fields.integer("epoch"),
        roles=fields.texts("roles", most=256),
        tier=fields.integer("tier", most=3),
        region=fields.text("region", max_length=_MAX_TEXT),
        site=fields.text("site", max_length=_MAX_TEXT),
        segment=fields.text("segment", max_length=_MAX_TEXT),
        labels=fields.mapping("labels"),
        versions=fields.mapping("versions"),
    )
    fields.finish()
    return record


def revocation_document(one: Revocation) -> dict[str, Any]:
    """A revocation as JSON values."""
    return {"number": one.number, "id": str(one.id), "serial": one.serial, "reason": one.reason, "at": one.at}


def _document(change: Change) -> dict[str, Any]:
    match change:
        case Revocation():
            return {"type": "revocation"} | revocation_document(change)
        case PostureChanged():
            posture = {"attestation": change.posture.attestation.value, "verdict": change.posture.verdict.value}
            until = {"attested_until": change.attested_until}
            head = {"type": "posture", "number": change.number, "id": str(change.id)}
            return head | posture | until | _at(change.at) | _renewal(change.renewal)
        case IdentityChanged():
            record = record_document(change.record)
            return {"type": "identity", "number": change.number, "record": record} | _at(change.at)
        case PolicyPublished():
            bundle = base64.b64encode(change.bundle).decode()
            return {"type": "policy", "revision": change.revision, "bundle": bundle} | _at(change.at)
        case Heartbeat():
            return {"type": "heartbeat", "at": change.at, "numbers": change.numbers._asdict()}


def _at(at: float) -> dict[str, Any]:
    return {"at": at} if at else {}


def _renewal(renewal: Renewal | None) -> dict[str, Any]:
    return {} if renewal is None else {"renewal": {"old": renewal.old, "new": renewal.new, "until": renewal.until}}


def _read_renewal(fields: Fields) -> Renewal | None:
    if not fields.has("renewal"):
        return None
    section = fields.section("renewal")
    found = Renewal(_serial(section, "old"), _serial(section, "new"), section.number("until"))
    section.finish()
    return found


def _serial(fields: Fields, name: str) -> str:
    serial = fields.text(name, max_length=_MAX_SERIAL)
    if not _SERIAL.fullmatch(serial):
        raise fields.fault(name, "expected lower-case hex digits")
    return serial


def _read_at(fields: Fields) -> float:
    return fields.number("at") if fields.has("at") else 0.0


def _revocation(fields: Fields) -> Revocation:
    serial = _serial(fields, "serial")
    return Revocation(
        fields.integer("number"), _id(fields), serial, fields.text("reason", max_length=_MAX_TEXT), fields.number("at")
    )


def _posture(fields: Fields) -> PostureChanged:
    attestation = AttestationClass(fields.one_of("attestation", tuple(AttestationClass)))
    posture = Posture(attestation, Verdict(fields.one_of("verdict", tuple(Verdict))))
    until = fields.number("attested_until")
    number, identity = fields.integer("number"), _id(fields)
    return PostureChanged(number, identity, posture, until, _read_at(fields), _read_renewal(fields))


def _identity(fields: Fields) -> IdentityChanged:
    record = read_record(fields.section("record"))
    return IdentityChanged(fields.integer("number"), record, _read_at(fields))


def _policy(fields: Fields) -> PolicyPublished:
    bundle = fields.base64("bundle", max_bytes=MAX_BUNDLE_BYTES)
    return PolicyPublished(fields.integer("revision"), bundle, _read_at(fields))


def _heartbeat(fields: Fields) -> Heartbeat:
    numbers = fields.section("numbers")
    found = SnapshotNumbers(*(numbers.integer(name) for name in SnapshotNumbers._fields))
    numbers.finish()
    return Heartbeat(fields.number("at"), found)


def _id(fields: Fields) -> SpiffeId:
    text = fields.text("id", max_length=MAX_SPIFFE_ID_BYTES)
    try:
        return SpiffeId.parse(text)
    except Fault as fault:
        raise fields.fault("id", fault.detail) from None


_READERS: dict[str, Callable[[Fields], Change]] = {
    "revocation": _revocation,
    "posture": _posture,
    "identity": _identity,
    "policy": _policy,
    "heartbeat": _heartbeat,
}

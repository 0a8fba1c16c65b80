"""A node's bundle on the wire: what it needs to decide by itself while it is cut off (`GET /v1/node/bundle`).

One line of JSON in UTF-8, its newline, and behind it the signed revision's archive as it stands in the ledger, byte for
byte; nothing behind that. Fields of the line:

| field | what it is |
|---|---|
| `version` | 1 |
| `at` | the authority's time, seconds since the Unix epoch |
| `numbers` | `policy`, `revocations`, `postures`, `inventory`: the latest of each |
| `policy_key` | the policy signing key's public half, PEM |
| `record` | the node's own inventory record, as on the feed |
| `posture` | `attestation`, `verdict`, `attested_until` |
| `terms` | `refresh`, `stale_after`, `expired_after`, seconds |
| `archive` | how many bytes follow: 0 when the node said that it has this revision, or when there is none yet |

The archive is signed; all else is believed because the channel is pinned to the root. Whoever reads is strict: nothing
unknown, nothing missing, nothing left over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import AttestationClass, IdentityRecord, Posture, SnapshotNumbers, Verdict
from foundation.reasons import Reason
from foundation.wire.changes import read_record, record_document

VERSION = 1
MAX_HEAD_BYTES = 64 * 1024
MAX_ARCHIVE_BYTES = 16 << 20  # `policies.archive` reads no larger one
MAX_NODE_BUNDLE_BYTES = MAX_HEAD_BYTES + 1 + MAX_ARCHIVE_BYTES
_MAX_KEY_BYTES = 8192
_WEEK = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class BundleTerms:
    """How a node keeps its bundle, in seconds: it asks again every `refresh`, and its facts are stale and expired (see
    `policies.staleness`) at these ages. The authority sets them for all nodes."""

    refresh: float = 300.0
    stale_after: float = 900.0
    expired_after: float = 86_400.0

    @classmethod
    def parse(cls, fields: Fields) -> BundleTerms:
        """Section `[authority.bundle]`. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        terms = cls(
            fields.duration("refresh", "5m"),
            fields.duration("stale_after", "15m"),
            fields.duration("expired_after", "1d"),
        )
        fields.finish()
        return terms._checked(fields)

    @classmethod
    def read(cls, fields: Fields) -> BundleTerms:
        """From the wire. Raises `Fault(MESSAGE_MALFORMED)`."""
        terms = cls(*(fields.number(name, most=_WEEK) for name in ("refresh", "stale_after", "expired_after")))
        fields.finish()
        return terms._checked(fields)

    def _checked(self, fields: Fields) -> BundleTerms:
        if not 1 <= self.refresh <= self.stale_after <= self.expired_after <= _WEEK:
            raise fields.fault("refresh", "expected 1s <= refresh <= stale_after <= expired_after <= 7d")
        return self


@dataclass(frozen=True, slots=True)
class NodeBundle:
    """See above. `attested_until` in seconds since the Unix epoch."""

    at: float
    numbers: SnapshotNumbers
    policy_key: bytes
    record: IdentityRecord
    posture: Posture
    attested_until: float
    terms: BundleTerms
    archive: bytes = b""

    def encode(self) -> bytes:
        """The bytes on the wire."""
        head = json.dumps(self._document(), separators=(",", ":"), allow_nan=False).encode()
        return head + b"\n" + self.archive

    def _document(self) -> dict[str, Any]:
        posture = {"attestation": self.posture.attestation.value, "verdict": self.posture.verdict.value}
        terms = {name: getattr(self.terms, name) for name in ("refresh", "stale_after", "expired_after")}
        return {
            "version": VERSION,
            "at": self.at,
            "numbers": self.numbers._asdict(),
            "policy_key": self.policy_key.decode("ascii"),
            "record": record_document(self.record),
            "posture": posture | {"attested_until": self.attested_until},
            "terms": terms,
            "archive": len(self.archive),
        }

    @classmethod
    def parse(cls, raw: bytes) -> NodeBundle:
        """The bundle in `raw`. Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)`."""
        head, newline, archive = raw.partition(b"\n")
        fields = Fields.from_json(head, "bundle", Reason.MESSAGE_MALFORMED, max_bytes=MAX_HEAD_BYTES)
        fields.integer("version", least=VERSION, most=VERSION)
        posture = fields.section("posture")
        bundle = cls(
            at=fields.number("at"),
            numbers=_numbers(fields.section("numbers")),
            policy_key=_pem(fields),
            record=read_record(fields.section("record")),
            posture=Posture(
                AttestationClass(posture.one_of("attestation", tuple(AttestationClass))),
                Verdict(posture.one_of("verdict", tuple(Verdict))),
            ),
            attested_until=posture.number("attested_until"),
            terms=BundleTerms.read(fields.section("terms")),
            archive=archive,
        )
        posture.finish()
        stated = fields.integer("archive", most=MAX_ARCHIVE_BYTES)
        fields.finish()
        if not newline or stated != len(archive):
            raise Fault(Reason.MESSAGE_MALFORMED, "the archive is not as long as stated", field="bundle.archive")
        return bundle


def _numbers(fields: Fields) -> SnapshotNumbers:
    numbers = SnapshotNumbers(*(fields.integer(name) for name in SnapshotNumbers._fields))
    fields.finish()
    return numbers


def _pem(fields: Fields) -> bytes:
    text = fields.text("policy_key", max_length=_MAX_KEY_BYTES)
    if not text.isascii():
        raise fields.fault("policy_key", "expected PEM")
    return text.encode("ascii")

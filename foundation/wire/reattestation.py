"""Continuous re-attestation's bytes, shared by authority and agent. docs/protocol.md tells it field by field.

Laws held here:
- what the TPM signs is computed by one function of this module, used by both sides; its prefix is no other protocol's,
  so that a quote made for enrolment is none for this, and the reverse;
- messages are strict JSON objects: unknown fields, duplicate keys, non-canonical base64 are refused.

A round is one PUSH and its NEXT: the PUSH proves by a quote over the nonce that the NEXT before carried. A node that
has no nonce pushes nothing, and is given one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.enrolment import (
    MAX_EVENT_LOG_BYTES,
    MAX_STRUCTURE_BYTES,
    NONCE_BYTES,
    PCR_BANKS,
    PcrSelection,
)
from foundation.wire.measurements import MAX_MEASUREMENTS_BYTES

VERSION = 1
PATH = "/v1/attest"
MAX_PUSH_BYTES = 4 * 1024 * 1024
MAX_NEXT_BYTES = 4 * 1024
MAX_INTERVAL_SECONDS = 24 * 3600
_MAX_DIGEST_BYTES = 64
_PREFIX = b"sallyport attestation v1\x00"


@dataclass(frozen=True, slots=True)
class Push:
    """What a node proves of itself, now. `quote_attest` is TPMS_ATTEST and `quote_signature` TPMT_SIGNATURE, both
    marshalled, without size fields; `pcr_values` are the quoted PCRs' digests in the order of the asked indices.
    `event_log` is the firmware's (TCG PC Client PFP §10), empty unless a PCR is another than the authority knows.
    `measurements` are entries of the kernel's runtime log (`foundation.wire.measurements`) from the entry number
    `measured_from` on, counted from 0."""

    quote_attest: bytes = b""
    quote_signature: bytes = b""
    pcr_values: tuple[bytes, ...] = ()
    event_log: bytes = b""
    measured_from: int = 0
    measurements: bytes = b""

    @property
    def asks(self) -> bool:
        """Whether it proves nothing: the node asks for a nonce."""
        return not self.quote_attest

    def encode(self) -> bytes:
        return _dump(
            {
                "version": VERSION,
                "quote": {"attest": _b64(self.quote_attest), "signature": _b64(self.quote_signature)},
                "pcr_values": [_b64(item) for item in self.pcr_values],
                "event_log": _b64(self.event_log),
                "measured_from": self.measured_from,
                "measurements": _b64(self.measurements),
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Push:
        """Raises `Fault(EVIDENCE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "evidence", Reason.EVIDENCE_MALFORMED, max_bytes=MAX_PUSH_BYTES)
        fields.integer("version", least=VERSION, most=VERSION)
        quote = fields.section("quote")
        message = cls(
            quote_attest=quote.base64("attest", max_bytes=MAX_STRUCTURE_BYTES),
            quote_signature=quote.base64("signature", max_bytes=MAX_STRUCTURE_BYTES),
            pcr_values=_digests(fields),
            event_log=fields.base64("event_log", max_bytes=MAX_EVENT_LOG_BYTES),
            measured_from=fields.integer("measured_from", most=2**31),
            measurements=fields.base64("measurements", max_bytes=MAX_MEASUREMENTS_BYTES),
        )
        quote.finish()
        fields.finish()
        if message.asks and message != cls():
            raise Fault(Reason.EVIDENCE_MALFORMED, "evidence without a quote", field="evidence.quote.attest")
        return message


@dataclass(frozen=True, slots=True)
class Next:
    """The answer. `nonce` and `pcrs` are for the next quote, which is due in `interval` seconds; `attested_until` is
    until when the evidence of this round holds, in seconds since the Unix epoch, 0 where it was asked for a nonce
    alone; `measured` tells whether PCR 10 is quoted and the runtime log is to come with it."""

    nonce: bytes
    pcrs: PcrSelection
    interval: int
    attested_until: int
    measured: bool

    def encode(self) -> bytes:
        return _dump(
            {
                "nonce": _b64(self.nonce),
                "pcrs": self.pcrs.to_json(),
                "interval": self.interval,
                "attested_until": self.attested_until,
                "measured": self.measured,
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Next:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "next", Reason.MESSAGE_MALFORMED, max_bytes=MAX_NEXT_BYTES)
        pcrs = fields.section("pcrs")
        message = cls(
            nonce=fields.base64("nonce", max_bytes=NONCE_BYTES),
            pcrs=PcrSelection(pcrs.one_of("bank", PCR_BANKS), _indices(pcrs)),
            interval=fields.integer("interval", least=1, most=MAX_INTERVAL_SECONDS),
            attested_until=fields.integer("attested_until"),
            measured=fields.flag("measured"),
        )
        pcrs.finish()
        fields.finish()
        if len(message.nonce) != NONCE_BYTES:
            raise fields.fault("nonce", f"expected {NONCE_BYTES} bytes")
        return message


def qualifying_data(identity: str, serial: str, authority: bytes, nonce: bytes) -> bytes:
    """The 32 bytes that the TPM signs as extraData. `identity` is the node's SPIFFE ID and `serial` (lower-case hex)
    that of the certificate by which it sends; `authority` is the SHA-256 of the authority's root, DER."""
    digest = hashlib.sha256(_PREFIX)
    for part in (b"quote", identity.encode(), serial.encode(), authority, nonce):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def _digests(fields: Fields) -> tuple[bytes, ...]:
    items = fields.texts("pcr_values", most=24)
    named = Fields({str(i): item for i, item in enumerate(items)}, f"{fields.path}.pcr_values", fields.reason)
    return tuple(named.base64(str(i), max_bytes=_MAX_DIGEST_BYTES) for i in range(len(items)))


def _indices(fields: Fields) -> tuple[int, ...]:
    indices = fields.integers("indices", least=0, most=23, count=24)
    if list(indices) != sorted(set(indices)) or not indices:
        raise fields.fault("indices", "expected rising PCR indices")
    return indices


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _dump(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()

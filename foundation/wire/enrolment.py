"""The enrolment protocol's bytes, shared by authority and agent. docs/protocol.md tells it field by field.

Laws held here:
- every byte that is signed or proven is computed by one function of this module, used by both sides;
- messages are strict JSON objects: unknown fields, duplicate keys, non-canonical base64 are refused;
- the second message's evidence is one opaque byte string, verified exactly as it was received.

Flow: BEGIN → CHALLENGE → COMPLETE → ISSUED. `purpose` is `enrol` (no certificate yet, on the enrolment listener) or
`renew` (over mTLS with the present certificate; no credential to activate, for the AK is known to be bound).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import check_name
from foundation.reasons import Reason

VERSION = 1
MAX_BEGIN_BYTES = 64 * 1024
MAX_COMPLETE_BYTES = 2 * 1024 * 1024
MAX_STRUCTURE_BYTES = 4 * 1024
MAX_CERTIFICATE_BYTES = 8 * 1024
MAX_CHAIN_CERTIFICATES = 6
MAX_EVENT_LOG_BYTES = 512 * 1024
NONCE_BYTES = 32
SESSION_BYTES = 16
PURPOSES = ("enrol", "renew")
PCR_BANKS = ("sha256", "sha384")

_TOKEN_PREFIX = "sp1_"  # noqa: S105  # a format's marker, not a secret
_ROOT_BYTES, _TOKEN_ID_BYTES, _TOKEN_SECRET_BYTES = 32, 16, 32


@dataclass(frozen=True, slots=True)
class Token:
    """A one-time enrolment token: it carries the SHA-256 of the root's DER, so that the node knows its authority."""

    root_sha256: bytes
    token_id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Token(token_id={self.token_id.hex()})"

    def encode(self) -> str:
        return (
            _TOKEN_PREFIX
            + base64.urlsafe_b64encode(self.root_sha256 + self.token_id + self.secret).rstrip(b"=").decode()
        )

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises `Fault(TOKEN_MALFORMED)`."""
        body = text.removeprefix(_TOKEN_PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise Fault(Reason.TOKEN_MALFORMED, field="token") from None
        if not text.startswith(_TOKEN_PREFIX) or len(raw) != _ROOT_BYTES + _TOKEN_ID_BYTES + _TOKEN_SECRET_BYTES:
            raise Fault(Reason.TOKEN_MALFORMED, field="token")
        token = cls(raw[:_ROOT_BYTES], raw[_ROOT_BYTES:-_TOKEN_SECRET_BYTES], raw[-_TOKEN_SECRET_BYTES:])
        if token.encode() != text:
            raise Fault(Reason.TOKEN_MALFORMED, field="token")
        return token


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """Which PCRs of which bank."""

    bank: str
    indices: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"bank": self.bank, "indices": list(self.indices)}


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message. Public areas are TPM2B_PUBLIC's inner TPMT_PUBLIC, marshalled; certificates are DER. With
    `attestation` `none` there is no EK and no AK, and `tls_public` is a DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    A renewal names no token, EK or chain: they are on record."""

    purpose: str
    attestation: str
    node: str
    token: str
    ek_certificate: bytes
    ek_chain: tuple[bytes, ...]
    ek_public: bytes
    ak_public: bytes
    tls_public: bytes

    def encode(self) -> bytes:
        return _dump(
            {
                "version": VERSION,
                "purpose": self.purpose,
                "attestation": self.attestation,
                "node": self.node,
                "token": self.token,
                "ek_certificate": _b64(self.ek_certificate),
                "ek_chain": [_b64(item) for item in self.ek_chain],
                "ek_public": _b64(self.ek_public),
                "ak_public": _b64(self.ak_public),
                "tls_public": _b64(self.tls_public),
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Begin:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "begin", Reason.MESSAGE_MALFORMED, max_bytes=MAX_BEGIN_BYTES)
        fields.integer("version", least=VERSION, most=VERSION)
        node = fields.text("node", max_length=63)
        message = cls(
            purpose=fields.one_of("purpose", PURPOSES),
            attestation=fields.one_of("attestation", ("tpm", "none")),
            node=check_name(node, field="begin.node") if node else "",
            token=fields.text("token", max_length=256),
            ek_certificate=fields.base64("ek_certificate", max_bytes=MAX_CERTIFICATE_BYTES),
            ek_chain=_certificates(fields),
            ek_public=fields.base64("ek_public", max_bytes=MAX_STRUCTURE_BYTES),
            ak_public=fields.base64("ak_public", max_bytes=MAX_STRUCTURE_BYTES),
            tls_public=fields.base64("tls_public", max_bytes=MAX_STRUCTURE_BYTES),
        )
        fields.finish()
        return message


@dataclass(frozen=True, slots=True)
class Challenge:
    """The answer to the first message. `credential_blob` is TPM2B_ID_OBJECT and `encrypted_secret` is
    TPM2B_ENCRYPTED_SECRET, both with their size fields, as TPM2_ActivateCredential takes them (TPM 2.0 Part 3 §12.5);
    both are empty when there is nothing to activate. `server_spki_sha256` is what the authority believes its TLS
    certificate's public key to be: the node compares it with the one it sees."""

    session: bytes
    nonce: bytes
    expires_in: int
    credential_blob: bytes
    encrypted_secret: bytes
    pcrs: PcrSelection
    server_spki_sha256: bytes

    def encode(self) -> bytes:
        return _dump(
            {
                "session": _b64(self.session),
                "nonce": _b64(self.nonce),
                "expires_in": self.expires_in,
                "credential_blob": _b64(self.credential_blob),
                "encrypted_secret": _b64(self.encrypted_secret),
                "pcrs": self.pcrs.to_json(),
                "server_spki_sha256": _b64(self.server_spki_sha256),
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Challenge:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "challenge", Reason.MESSAGE_MALFORMED, max_bytes=MAX_BEGIN_BYTES)
        pcrs = fields.section("pcrs")
        message = cls(
            session=fields.base64("session", max_bytes=SESSION_BYTES),
            nonce=fields.base64("nonce", max_bytes=NONCE_BYTES),
            expires_in=fields.integer("expires_in", least=1, most=3600),
            credential_blob=fields.base64("credential_blob", max_bytes=MAX_STRUCTURE_BYTES),
            encrypted_secret=fields.base64("encrypted_secret", max_bytes=MAX_STRUCTURE_BYTES),
            pcrs=PcrSelection(pcrs.one_of("bank", PCR_BANKS), _indices(pcrs)),
            server_spki_sha256=fields.base64("server_spki_sha256", max_bytes=32),
        )
        pcrs.finish()
        fields.finish()
        return message


@dataclass(frozen=True, slots=True)
class Complete:
    """The second message: the evidence as one byte string, and the proof that this TPM activated the credential."""

    session: bytes
    evidence: bytes
    proof: bytes

    def encode(self) -> bytes:
        return _dump({"session": _b64(self.session), "evidence": _b64(self.evidence), "proof": _b64(self.proof)})

    @classmethod
    def parse(cls, raw: bytes) -> Complete:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "complete", Reason.MESSAGE_MALFORMED, max_bytes=MAX_COMPLETE_BYTES)
        message = cls(
            session=fields.base64("session", max_bytes=SESSION_BYTES),
            evidence=fields.base64("evidence", max_bytes=MAX_COMPLETE_BYTES),
            proof=fields.base64("proof", max_bytes=32),
        )
        fields.finish()
        return message


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the node proves. `*_attest` is TPMS_ATTEST, `*_signature` TPMT_SIGNATURE, both marshalled, without size
    fields. `pcr_values` are the quoted PCRs' digests in the order of the asked indices. `event_log` is the firmware's
    (TCG PC Client PFP §10), empty where the machine has none. `csr` is a DER PKCS #10 (RFC 2986) made with the TLS key.
    With attestation `none` only `csr` and `possession` are filled: a signature by the TLS key over the qualifying data
    (ECDSA with SHA-256)."""

    certify_attest: bytes
    certify_signature: bytes
    quote_attest: bytes
    quote_signature: bytes
    pcr_values: tuple[bytes, ...]
    event_log: bytes
    csr: bytes
    possession: bytes = b""

    def encode(self) -> bytes:
        return _dump(
            {
                "certify": {"attest": _b64(self.certify_attest), "signature": _b64(self.certify_signature)},
                "quote": {"attest": _b64(self.quote_attest), "signature": _b64(self.quote_signature)},
                "pcr_values": [_b64(item) for item in self.pcr_values],
                "event_log": _b64(self.event_log),
                "csr": _b64(self.csr),
                "possession": _b64(self.possession),
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Evidence:
        """Raises `Fault(EVIDENCE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "evidence", Reason.EVIDENCE_MALFORMED, max_bytes=MAX_COMPLETE_BYTES)
        certify, quote = fields.section("certify"), fields.section("quote")
        message = cls(
            certify_attest=certify.base64("attest", max_bytes=MAX_STRUCTURE_BYTES),
            certify_signature=certify.base64("signature", max_bytes=MAX_STRUCTURE_BYTES),
            quote_attest=quote.base64("attest", max_bytes=MAX_STRUCTURE_BYTES),
            quote_signature=quote.base64("signature", max_bytes=MAX_STRUCTURE_BYTES),
            pcr_values=_base64_list(fields, "pcr_values", most=24, max_bytes=64),
            event_log=fields.base64("event_log", max_bytes=MAX_EVENT_LOG_BYTES),
            csr=fields.base64("csr", max_bytes=MAX_CERTIFICATE_BYTES),
            possession=fields.base64("possession", max_bytes=1024),
        )
        certify.finish()
        quote.finish()
        fields.finish()
        return message


@dataclass(frozen=True, slots=True)
class Issued:
    """The answer to the second message. `chain` begins with the leaf and ends with the root, each DER. Times are
    seconds since the Unix epoch."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    not_after: int
    renew_after: int
    attestation: str
    attested_until: int

    def encode(self) -> bytes:
        return _dump(
            {
                "spiffe_id": self.spiffe_id,
                "chain": [_b64(item) for item in self.chain],
                "not_after": self.not_after,
                "renew_after": self.renew_after,
                "attestation": self.attestation,
                "attested_until": self.attested_until,
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Issued:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "issued", Reason.MESSAGE_MALFORMED, max_bytes=MAX_BEGIN_BYTES)
        message = cls(
            spiffe_id=fields.text("spiffe_id"),
            chain=_base64_list(fields, "chain", most=MAX_CHAIN_CERTIFICATES, max_bytes=MAX_CERTIFICATE_BYTES),
            not_after=fields.integer("not_after"),
            renew_after=fields.integer("renew_after"),
            attestation=fields.one_of("attestation", ("hardware", "virtual", "none")),
            attested_until=fields.integer("attested_until"),
        )
        fields.finish()
        return message


def qualifying_data(
    kind: str, purpose: str, session: bytes, nonce: bytes, first_message: bytes, server_spki_sha256: bytes
) -> bytes:
    """The 32 bytes that the TPM signs as extraData. `kind` is `certify`, `quote` or `possession`; `first_message` is
    the raw BEGIN; `server_spki_sha256` is that of the TLS certificate the node saw, so that a relay's own key shows."""
    digest = hashlib.sha256(b"sallyport enrolment v1\x00")
    for part in (
        kind.encode(),
        purpose.encode(),
        session,
        nonce,
        hashlib.sha256(first_message).digest(),
        server_spki_sha256,
    ):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def proof(secret: bytes, session: bytes, first_message: bytes, evidence: bytes) -> bytes:
    """HMAC-SHA-256 with a key derived (HKDF, RFC 5869) from the activated secret over everything that was said."""
    key = HKDF(hashes.SHA256(), 32, salt=session, info=b"sallyport enrolment v1 proof").derive(secret)
    message = b"sallyport enrolment v1 complete\x00" + session + hashlib.sha256(first_message).digest() + evidence
    return hmac.digest(key, message, "sha256")


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _dump(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _certificates(fields: Fields) -> tuple[bytes, ...]:
    return _base64_list(fields, "ek_chain", most=MAX_CHAIN_CERTIFICATES, max_bytes=MAX_CERTIFICATE_BYTES)


def _base64_list(fields: Fields, name: str, *, most: int, max_bytes: int) -> tuple[bytes, ...]:
    items = fields.texts(name, most=most)
    named = Fields({str(i): item for i, item in enumerate(items)}, f"{fields.path}.{name}", fields.reason)
    return tuple(named.base64(str(i), max_bytes=max_bytes) for i in range(len(items)))


def _indices(fields: Fields) -> tuple[int, ...]:
    indices = fields.integers("indices", least=0, most=23, count=24)
    if list(indices) != sorted(set(indices)) or not indices:
        raise fields.fault("indices", "expected rising PCR indices")
    return indices

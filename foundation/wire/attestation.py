"""The certificate extension that says how its identity was attested when the certificate was issued.

It is the fallback record: a gateway that knows the identity's posture uses that, for posture changes and a certificate
does not. The extension is not critical, for it only adds to what RFC 5280 defines. Its value is this DER:

    Attestation ::= SEQUENCE {
        class         UTF8String,   -- hardware, virtual or none
        attestedUntil INTEGER }     -- seconds since 1970-01-01T00:00:00Z, 0 when nothing was attested

The OID is the UUID b5793a94-628e-4ddc-abf4-1e3861f3f789 below 1.2.840.113556.1.8000.2554, where anybody may use one
without registering it, in seven arcs. It is not below 2.25, where a UUID is one arc (ITU-T X.667 §7): arcs of more than
28 bits need not be understood (RFC 5280, appendix B), and Go refuses the whole certificate for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason

ATTESTATION_OID = x509.ObjectIdentifier("1.2.840.113556.1.8000.2554.46457.14996.25230.19932.44020.1980513.15988617")
_SEQUENCE, _UTF8, _INTEGER = 0x30, 0x0C, 0x02
_LATEST = 253402300799  # 9999-12-31T23:59:59Z, where X.509 time ends (RFC 5280 §4.1.2.5)


@dataclass(frozen=True, slots=True)
class CertifiedAttestation:
    """What the extension says. `attested_until` is in seconds since the Unix epoch."""

    attestation: AttestationClass
    attested_until: int

    def encode(self) -> bytes:
        """The extension's DER value."""
        length = self.attested_until.bit_length() // 8 + 1
        body = _tlv(_UTF8, self.attestation.value.encode())
        return _tlv(_SEQUENCE, body + _tlv(_INTEGER, self.attested_until.to_bytes(length, "big")))

    @classmethod
    def decode(cls, raw: bytes) -> CertifiedAttestation:
        """The value in `raw`, which must be exactly what `encode` makes. Raises
        `Fault(CLIENT_CERTIFICATE_INVALID)`."""
        try:
            size = raw[3]
            value = cls(AttestationClass(raw[4 : 4 + size].decode()), int.from_bytes(raw[6 + size :], "big"))
        except (IndexError, ValueError):
            raise _malformed() from None
        if value.attested_until > _LATEST or value.encode() != raw:
            raise _malformed()
        return value


def certified_attestation(certificate: x509.Certificate) -> CertifiedAttestation:
    """What `certificate` says of its holder's attestation; class `none` when it says nothing. Raises
    `Fault(CLIENT_CERTIFICATE_INVALID)`."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ATTESTATION_OID)
    except x509.ExtensionNotFound:
        return CertifiedAttestation(AttestationClass.NONE, 0)
    if not isinstance(extension.value, x509.UnrecognizedExtension):
        raise _malformed()
    return CertifiedAttestation.decode(extension.value.value)


def _tlv(tag: int, body: bytes) -> bytes:
    return bytes((tag, len(body))) + body


def _malformed() -> Fault:
    return Fault(
        Reason.CLIENT_CERTIFICATE_INVALID, "the attestation extension is malformed", field="certificate.attestation"
    )

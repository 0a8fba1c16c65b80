"""The certificate request: it gives the key and proves its possession, and nothing else of it is read (RFC 2986)."""

from __future__ import annotations

import hmac

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.der import UNREADABLE, check_der
from pki.tpm.weak import NO_BLOCKLIST, Blocklist, check_key

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def requested_key(raw: bytes, path: str) -> bytes:
    """The key that the PKCS #10 request in `raw` is for and signed by, as DER SubjectPublicKeyInfo. Raises
    `Fault(CSR_MALFORMED | WEAK_KEY)`."""
    check_der(raw, Reason.CSR_MALFORMED, path)
    try:
        key = x509.load_der_x509_csr(raw).public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE:
        raise Fault(Reason.CSR_MALFORMED, "not a certificate request", field=path) from None
    check_request(raw, spki, path)
    return spki


def check_request(raw: bytes, spki: bytes, path: str, blocklist: Blocklist = NO_BLOCKLIST) -> None:
    """Refuse unless the PKCS #10 request in `raw` is strict DER, for the key `spki` (DER SubjectPublicKeyInfo), and
    signed by it. Raises `Fault(CSR_MALFORMED | WEAK_KEY | CSR_KEY_MISMATCH)`."""
    check_der(raw, Reason.CSR_MALFORMED, path)
    try:
        request = x509.load_der_x509_csr(raw)
        key = request.public_key()
        found = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signed = isinstance(request.signature_hash_algorithm, _HASHES) and request.is_signature_valid
    except UNREADABLE:
        raise Fault(Reason.CSR_MALFORMED, "not a certificate request", field=path) from None
    if not signed:
        raise Fault(Reason.CSR_MALFORMED, "its signature does not verify", field=path)
    check_key(key, path, blocklist)
    if not hmac.compare_digest(found, spki):
        raise Fault(Reason.CSR_KEY_MISMATCH, field=path)

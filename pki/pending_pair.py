"""A key made on this machine and the certificate that it gets, as a pair of files that is never half of each.

Laws held here:
- the key is on disk, 0600, before anybody is asked to certify it, beside its place as `<key>.pending`; a run that was
  stopped, or whose answer was lost, is taken up again with it and gets the same certificate;
- nothing is replaced before the answer was found to certify this key.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.faults import Fault
from foundation.files import read_secret, sync_folder, write_atomic, write_secret
from foundation.reasons import Reason
from foundation.tls import KeyPair

MAX_CHAIN = 4


@dataclass(frozen=True, slots=True)
class PendingPair:
    """`key` waits in the file `<pair.key>.pending` for its certificate."""

    pair: KeyPair
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, pair: KeyPair) -> PendingPair:
        """The one that waits already, or a new one. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        waiting = _pending(pair)
        if not waiting.exists():
            return cls._make(pair, waiting)
        key = _load(waiting)
        if not _is_certified(pair.certificate, key):
            return cls(pair, key)
        # Stopped between the two files: the certificate is in place, and its key follows.
        _put_in_place(pair)
        return cls._make(pair, waiting)

    @classmethod
    def _make(cls, pair: KeyPair, waiting: Path) -> PendingPair:
        key = ec.generate_private_key(ec.SECP256R1())
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            write_secret(waiting, plain)
        except OSError as error:
            raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be made", field=str(waiting)) from error
        return cls(pair, key)

    def request(self) -> bytes:
        """A DER PKCS #10 (RFC 2986) with an empty subject: the authority's records decide the name."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def keep(self, chain: bytes) -> datetime.datetime:
        """Put the pair in place: `chain` in PEM, leaf first. Returns the leaf's end. Raises `Fault(MESSAGE_MALFORMED)`
        for a chain that does not certify this key, and `OSError`; then the old pair is whole."""
        try:
            certificates = x509.load_pem_x509_certificates(chain)
            certified = certificates[0].public_key() == self.key.public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise Fault(Reason.MESSAGE_MALFORMED, "expected certificates in PEM", field="answer.pem") from None
        if not certified or len(certificates) > MAX_CHAIN:
            raise Fault(Reason.MESSAGE_MALFORMED, "it does not certify the key that was sent", field="answer.pem")
        write_atomic(self.pair.certificate, chain)
        _put_in_place(self.pair)
        return certificates[0].not_valid_after_utc


def _pending(pair: KeyPair) -> Path:
    return pair.key.with_name(f"{pair.key.name}.pending")


def _put_in_place(pair: KeyPair) -> None:
    _pending(pair).replace(pair.key)
    sync_folder(pair.key.parent)


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_secret(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Fault(Reason.FILE_UNREADABLE, "no key of ours; remove it", field=str(path))
    return key


def _is_certified(path: Path, key: ec.EllipticCurvePrivateKey) -> bool:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0].public_key() == key.public_key()
    except (OSError, ValueError, UnsupportedAlgorithm):
        return False

"""Renewing the issuing CA by the root's key, where that key is: a machine that serves nothing and needs no network.

Usually the key stays: the new certificate has the subject and the key of the old one, so that what either has signed
verifies under both, and every certificate in use stays good. Only certificates are read and written then, never the
issuing key. A new key is for after the old one was withdrawn, or is to be left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.faults import Fault
from foundation.files import read_secret, write_atomic, write_secret
from foundation.reasons import Reason
from pki.bootstrap import ISSUING_SECONDS, ca_builder
from pki.profile import Issuer
from pki.revocation import crl_builder
from pki.signer import Draft, FileSigner, check_issued, close_key, open_key, seal_certificate, seal_crl


@dataclass(frozen=True, slots=True)
class RootKey:
    """Where the root's key is, and what opens it; both 0600."""

    key: Path
    passphrase: Path

    def signer(self, root: x509.Certificate) -> FileSigner:
        """Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | SIGNER_FAILED)`."""
        return FileSigner(root, open_key(read_secret(self.key), read_secret(self.passphrase).strip()))


async def renew_issuing(folder: Path, root_key: RootKey, now: int, passphrase: bytes | None = None) -> x509.Certificate:
    """Write `issuing.pem` and `root.crl` in `folder` anew, by the root of `root.pem` there: for the key of the
    `issuing.pem` there, or, with a `passphrase` to close it by, for a new key in `issuing.key`. `now` is in seconds
    since the Unix epoch. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | SIGNER_FAILED | PROFILE_REFUSED)`; then
    nothing has changed."""
    if passphrase == b"":
        raise Fault(Reason.SIGNER_FAILED, "the passphrase for the new key is empty")
    root, old = _read(folder / "root.pem"), _read(folder / "issuing.pem")
    known = _read_crl(folder / "root.crl")
    check_issued(old, root)
    signer, issuer, key = root_key.signer(root), Issuer.of(root), old.public_key()
    new_key = None if passphrase is None else ec.generate_private_key(ec.SECP256R1())
    if new_key is not None:
        key = new_key.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Fault(Reason.SIGNER_FAILED, "the issuing CA's key is not an ECDSA key", field="issuing.pem")
    left = issuer.not_after - now
    if left <= 0:
        raise Fault(Reason.PROFILE_REFUSED, "the root itself has ended: a new installation is due", field="root.pem")
    builder = ca_builder(old.subject, root.subject, key, root.public_key(), now, min(ISSUING_SECONDS, left), 0)
    issuing = await seal_certificate(signer, Draft(root).certificate(builder))
    crl = await seal_crl(signer, Draft(root).crl(_next_crl(known, issuer, now)))
    if new_key is not None and passphrase is not None:
        write_secret(folder / "issuing.key", close_key(new_key, passphrase))
    write_atomic(folder / "root.crl", crl.public_bytes(serialization.Encoding.DER))
    write_atomic(folder / "issuing.pem", issuing.public_bytes(serialization.Encoding.PEM))
    return issuing


def _next_crl(old: x509.CertificateRevocationList, issuer: Issuer, now: int) -> x509.CertificateRevocationListBuilder:
    """The root's CRL with the next number and the same entries."""
    number = old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    builder = crl_builder(issuer, number + 1, now, ISSUING_SECONDS)
    for entry in old:
        builder = builder.add_revoked_certificate(entry)
    return builder


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise Fault(Reason.FILE_UNREADABLE, "not a certificate in PEM", field=str(path)) from None


def _read_crl(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_der_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        raise Fault(Reason.FILE_UNREADABLE, "the root's CRL goes on from the one before", field=str(path)) from None

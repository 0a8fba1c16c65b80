"""A CA key that signs, and nothing more: `Signer` is all that the authority knows of it.

Laws held here:
- what is signed is bytes that exist before: a certificate's TBSCertificate (RFC 5280 §4.1), recorded and linted, or a
  CRL's TBSCertList (§5.1). No signer gets to add a byte;
- every signature is verified with the CA's public key before it leaves `seal_certificate` or `seal_crl`: a faulty
  signer is found here, not by a relying party.
"""

from __future__ import annotations

from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.faults import Fault
from foundation.reasons import Reason

_SEQUENCE, _BIT_STRING = 0x30, 0x03
_Hash = hashes.SHA256 | hashes.SHA384
_HASHES: dict[str, type[_Hash]] = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384}


class Signer(Protocol):
    """A CA: its certificate, and the key behind it, which may be in a file, a module or a service."""

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own certificate."""
        ...

    async def sign(self, message: bytes) -> bytes:
        """The DER ECDSA signature (RFC 3279 §2.2.3) over `message`, hashed as `hash_for` says. Raises
        `Fault(SIGNER_FAILED)`."""
        ...


class FileSigner:
    """A `Signer` whose key was read from an encrypted PKCS #8 file (RFC 5958) into this process."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Raises `Fault(SIGNER_FAILED)` when the key is not the certificate's."""
        if _spki(key.public_key()) != _spki(certificate.public_key()):
            raise Fault(Reason.SIGNER_FAILED, "the key file holds another key than the CA certificate's")
        self._certificate = certificate
        self._key = key
        self._scheme = ec.ECDSA(hash_for(key.curve))

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes, passphrase: bytes) -> FileSigner:
        """Raises `Fault(SIGNER_FAILED)` when the passphrase is wrong, the key is stored unencrypted, or it is not an
        ECDSA key."""
        return cls(x509.load_pem_x509_certificate(certificate_pem), open_key(key_pem, passphrase))

    @property
    def certificate(self) -> x509.Certificate:
        return self._certificate

    async def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, self._scheme)


def close_key(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:
    """`key` as an encrypted PKCS #8 PEM file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )


def open_key(key_pem: bytes, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """The key in an encrypted PKCS #8 PEM file. Raises `Fault(SIGNER_FAILED)`."""
    try:
        key = serialization.load_pem_private_key(key_pem, passphrase)
    except (ValueError, TypeError):
        # The library's message is not passed on: it may describe the key.
        raise Fault(Reason.SIGNER_FAILED, "the key file is not encrypted PKCS #8, or the passphrase is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Fault(Reason.SIGNER_FAILED, "the CA key is not an ECDSA key")
    return key


def hash_for(curve: ec.EllipticCurve) -> _Hash:
    """The hash that goes with a CA key on `curve`. Raises `Fault(SIGNER_FAILED)` for a curve that no CA may use."""
    if curve.name not in _HASHES:
        raise Fault(Reason.SIGNER_FAILED, "a CA key is on P-256 or P-384")
    return _HASHES[curve.name]()


class Draft:
    """Turns builders into the bytes to be signed. They are signed by a throw-away key of the CA's kind, so that
    everything but the signature stands before the CA's key is touched, and can be linted."""

    def __init__(self, issuer: x509.Certificate) -> None:
        key = issuer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Fault(Reason.SIGNER_FAILED, "the CA key is not an ECDSA key")
        self._throw_away = ec.generate_private_key(key.curve)
        self._hash = hash_for(key.curve)

    def certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """A certificate that is final but for its signature."""
        return builder.sign(self._throw_away, self._hash)

    def crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """A CRL that is final but for its signature."""
        return builder.sign(self._throw_away, self._hash)


async def seal_certificate(signer: Signer, draft: x509.Certificate) -> x509.Certificate:
    """`draft` with the CA's signature instead of the throw-away key's. Raises `Fault(SIGNER_FAILED)` when the result's
    TBSCertificate is not the draft's byte for byte, or the signature does not verify."""
    tbs = draft.tbs_certificate_bytes
    raw = await _assemble(signer, tbs, draft.public_bytes(serialization.Encoding.DER))
    certificate = x509.load_der_x509_certificate(raw)
    if certificate.tbs_certificate_bytes != tbs:
        raise Fault(Reason.SIGNER_FAILED, internal="the signed bytes are not those that were linted")
    _verify(signer, certificate.signature, tbs)
    return certificate


async def seal_crl(signer: Signer, draft: x509.CertificateRevocationList) -> x509.CertificateRevocationList:
    """As `seal_certificate`, for a CRL."""
    tbs = draft.tbs_certlist_bytes
    raw = await _assemble(signer, tbs, draft.public_bytes(serialization.Encoding.DER))
    crl = x509.load_der_x509_crl(raw)
    if crl.tbs_certlist_bytes != tbs:
        raise Fault(Reason.SIGNER_FAILED, internal="the signed bytes are not those that were drafted")
    _verify(signer, crl.signature, tbs)
    return crl


def check_issued(issuing: x509.Certificate, root: x509.Certificate) -> None:
    """Raises `Fault(SIGNER_FAILED)` unless `root` signed `issuing`."""
    try:
        issuing.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        raise Fault(Reason.SIGNER_FAILED, "the issuing CA is not signed by the root beside it") from None


async def _assemble(signer: Signer, tbs: bytes, draft: bytes) -> bytes:
    # Certificate and CertificateList are both SEQUENCE { tbs, signatureAlgorithm, BIT STRING } (RFC 5280 §4.1, §5.1).
    # The algorithm's bytes are the draft's own: they follow the tbs and end where their length says.
    after = draft[draft.index(tbs) + len(tbs) :]
    algorithm = after[: 2 + after[1]]
    signature = await signer.sign(tbs)
    return _tlv(_SEQUENCE, tbs + algorithm + _tlv(_BIT_STRING, b"\x00" + signature))


def _verify(signer: Signer, signature: bytes, message: bytes) -> None:
    key = signer.certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Fault(Reason.SIGNER_FAILED, "the CA key is not an ECDSA key")
    try:
        key.verify(signature, message, ec.ECDSA(hash_for(key.curve)))
    except InvalidSignature:
        raise Fault(Reason.SIGNER_FAILED, internal="the signature does not verify with the CA's public key") from None


def _tlv(tag: int, body: bytes) -> bytes:
    """One DER element (X.690 §8.1, §10.1)."""
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Fault(Reason.SIGNER_FAILED, "the CA key is not an ECDSA key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

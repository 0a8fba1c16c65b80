"""The policy signing key: made by `sallyport init`, kept as PKCS#8 PEM with mode 0600, best off the gateway.

ECDSA on P-256 with SHA-256, or Ed25519; nothing else is accepted. What is signed begins with its purpose, so that a
signature made for one thing never serves for another.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from foundation.faults import Fault
from foundation.files import read_secret
from foundation.reasons import Reason

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
VerifyingKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
MANIFEST_PURPOSE = b"sallyport revision manifest 1\0"
_MAX_KEY_BYTES = 8192
_ECDSA = ec.ECDSA(hashes.SHA256())


def load_signing_key(path: Path) -> SigningKey:
    """The key in `path`. Raises `Fault`."""
    try:
        key = load_pem_private_key(read_secret(path, max_bytes=_MAX_KEY_BYTES), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Fault(Reason.SIGNER_FAILED, "not an unencrypted PKCS#8 key in PEM", field=str(path)) from None
    if isinstance(key, ed25519.Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise Fault(Reason.SIGNER_FAILED, "the key is neither on P-256 nor Ed25519", field=str(path))


def public_pem(key: SigningKey | VerifyingKey) -> bytes:
    """The public key as SubjectPublicKeyInfo in PEM: what gateways pin."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def parse_verifying_key(pem: bytes) -> VerifyingKey:
    """The public key in `pem`. Raises `Fault(REVISION_SIGNATURE)`."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise Fault(Reason.REVISION_SIGNATURE, "the policy's public key is not one in PEM") from None
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise Fault(Reason.REVISION_SIGNATURE, "the policy's public key is neither on P-256 nor Ed25519")


def sign(key: SigningKey, purpose: bytes, message: bytes) -> bytes:
    """The signature over `purpose` and `message`."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(purpose + message, _ECDSA)
    return key.sign(purpose + message)


def check_signature(key: VerifyingKey, purpose: bytes, message: bytes, signature: bytes) -> None:
    """Raises `Fault(REVISION_SIGNATURE)` unless `signature` is of this key, purpose and message."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, purpose + message, _ECDSA)
        else:
            key.verify(signature, purpose + message)
    except InvalidSignature:
        raise Fault(Reason.REVISION_SIGNATURE) from None

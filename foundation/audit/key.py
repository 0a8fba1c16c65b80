"""The key that signs the audit log's heads: Ed25519 (RFC 8032), PKCS #8 PEM in a file of mode 0600."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from foundation.faults import Fault
from foundation.files import read_secret, write_atomic, write_secret
from foundation.reasons import Reason

PUBLIC_SUFFIX = ".pub"


def make_audit_key(path: Path) -> Ed25519PrivateKey:
    """A new key at `path`, and its public half at `path` + `.pub`. Raises `FileExistsError`, `OSError`."""
    key = Ed25519PrivateKey.generate()
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), replace=False)
    write_atomic(path.with_name(path.name + PUBLIC_SUFFIX), public_pem(key.public_key()))
    return key


def read_audit_key(path: Path) -> Ed25519PrivateKey:
    """Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Fault(Reason.FILE_UNREADABLE, "not a PKCS #8 key in PEM", field=str(path)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Fault(Reason.FILE_UNREADABLE, "not an Ed25519 key", field=str(path))
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Raises `Fault(FILE_UNREADABLE)`."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise Fault(Reason.FILE_UNREADABLE, "not a public key in PEM", field=str(path)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise Fault(Reason.FILE_UNREADABLE, "not an Ed25519 key", field=str(path))
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

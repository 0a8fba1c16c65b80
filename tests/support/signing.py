"""Policy signing keys, as `sallyport init` makes them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from foundation.files import write_secret
from policies.signing import SigningKey


def new_signing_key() -> SigningKey:
    """A fresh key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def store_signing_key(path: Path, key: SigningKey) -> None:
    """Write `key` to a new file, mode 0600."""
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), replace=False)

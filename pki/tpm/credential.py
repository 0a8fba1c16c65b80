"""MakeCredential outside a TPM: a secret that only the TPM holding both EK and AK frees.

Source: TPM 2.0 Part 1 §24 (credential protection), §11.4.10 (KDFa, KDFe), §B.10.4 (RSA), §C.6.4 (ECC). The caller gives
the randomness; only the padding of OAEP is drawn by the RSA implementation itself.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from pki.tpm.algorithms import Curve, Hash
from pki.tpm.public import EccKey, Public
from pki.tpm.reader import sized

ENTROPY_BYTES = 64  # a seed's 48 octets at most, or a P-384 scalar's with 64 bits more (FIPS 186-5 §A.2.1)
_ORDERS = {
    "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "P-384": int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
    ),
}


class Credential(NamedTuple):
    """TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET with their size fields, as TPM2_ActivateCredential takes them."""

    credential_blob: bytes
    encrypted_secret: bytes


def make_credential(ek: Public, ak_name: bytes, secret: bytes, entropy: bytes) -> Credential:
    """`secret` wrapped so that the TPM of `ek` frees it only beside an object named `ak_name`. `ek` has passed
    `pki.tpm.endorsement.check_template`; `secret` is at most as long as the hash of its Name, `entropy` is
    `ENTROPY_BYTES` fresh random octets. Raises `ValueError` when the caller breaks this."""
    if len(entropy) != ENTROPY_BYTES or not ek.aes_bits or not 0 < len(secret) <= ek.name_hash.size:
        raise ValueError("not a storage key, or secret or entropy of a wrong size")
    seed, encrypted_secret = _share_seed(ek, entropy)
    return Credential(_protect(ek, seed, ak_name, secret), sized(encrypted_secret))


def _protect(ek: Public, seed: bytes, name: bytes, secret: bytes) -> bytes:
    """Encrypt, then authenticate together with the Name (Part 1 §24.4, §24.5)."""
    key = kdf_a(ek.name_hash, seed, b"STORAGE", name, ek.aes_bits)
    # The initialisation vector is zero by the specification: the key is used once.
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    mac_key = kdf_a(ek.name_hash, seed, b"INTEGRITY", b"", ek.name_hash.size * 8)
    mac = hmac.digest(mac_key, identity + name, ek.name_hash.name)
    return sized(sized(mac) + identity)


def _share_seed(ek: Public, entropy: bytes) -> tuple[bytes, bytes]:
    if isinstance(ek.key, EccKey) and isinstance(ek.primitive, ec.EllipticCurvePublicKey):
        return _share_by_ecdh(ek.name_hash, ek.key.curve, ek.primitive, entropy)
    if isinstance(ek.primitive, rsa.RSAPublicKey):
        return _share_by_oaep(ek.name_hash, ek.primitive, entropy)
    raise TypeError("neither RSA nor ECC")


def _share_by_oaep(name_hash: Hash, key: rsa.RSAPublicKey, entropy: bytes) -> tuple[bytes, bytes]:
    """The label ends with a zero octet, which counts (Part 1 §B.4)."""
    seed, digest = entropy[: name_hash.size], name_hash.primitive
    return seed, key.encrypt(seed, padding.OAEP(padding.MGF1(digest), digest, b"IDENTITY\x00"))


def _share_by_ecdh(
    name_hash: Hash, curve: Curve, key: ec.EllipticCurvePublicKey, entropy: bytes
) -> tuple[bytes, bytes]:
    """Coordinates are as long as the curve's field, leading zeros included (Part 1 §C.8)."""
    scalar = int.from_bytes(entropy, "big") % (_ORDERS[curve.name] - 1) + 1
    ephemeral = ec.derive_private_key(scalar, curve.primitive)
    shared = ephemeral.exchange(ec.ECDH(), key)
    point = ephemeral.public_key().public_numbers()
    x, y = point.x.to_bytes(curve.size, "big"), point.y.to_bytes(curve.size, "big")
    party_v = key.public_numbers().x.to_bytes(curve.size, "big")
    seed = kdf_e(name_hash, shared, b"IDENTITY", x, party_v, name_hash.size * 8)
    return seed, sized(x) + sized(y)


def kdf_a(digest: Hash, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa (Part 1 §11.4.10.2): NIST SP 800-108 in counter mode over HMAC. `context` is both parties' joined."""
    algorithm, octets = digest.primitive, bits // 8
    before = CounterLocation.BeforeFixed
    return KBKDFHMAC(algorithm, Mode.CounterMode, octets, 4, 4, before, label, context, None).derive(key)


def kdf_e(digest: Hash, shared: bytes, use: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """KDFe (Part 1 §11.4.10.3): NIST SP 800-56A's concatenation. `use` ends with a zero octet."""
    return ConcatKDFHash(digest.primitive, bits // 8, use + b"\x00" + party_u + party_v).derive(shared)

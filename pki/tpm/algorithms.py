"""The algorithms that evidence may use, by their TPM numbers. Whatever is not here is refused.

Source: TCG Algorithm Registry v1.34 (TPM_ALG_ID, TPM_ECC_CURVE); TPM 2.0 Part 2 §6.3, §6.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.faults import Fault
from foundation.reasons import Reason


class Algorithm(IntEnum):
    """TPM_ALG_ID of what is neither hash nor curve."""

    RSA = 0x0001
    AES = 0x0006
    NULL = 0x0010
    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018
    ECC = 0x0023
    CFB = 0x0043


@dataclass(frozen=True, slots=True)
class Hash:
    """A hash by its TPM number. `name` is hashlib's and that of a PCR bank, `size` in octets."""

    number: int
    name: str
    size: int
    primitive: hashes.HashAlgorithm


@dataclass(frozen=True, slots=True)
class Curve:
    """A NIST prime curve by its TPM number. `size` is that of a coordinate in octets."""

    number: int
    name: str
    size: int
    primitive: ec.EllipticCurve


SHA1_NUMBER = 0x0004  # in event logs only, and never decided on
SHA256 = Hash(0x000B, "sha256", 32, hashes.SHA256())
SHA384 = Hash(0x000C, "sha384", 48, hashes.SHA384())
SHA512 = Hash(0x000D, "sha512", 64, hashes.SHA512())
HASHES = {item.number: item for item in (SHA256, SHA384, SHA512)}
BANKS = {item.name: item for item in (SHA256, SHA384, SHA512)}

P256 = Curve(0x0003, "P-256", 32, ec.SECP256R1())
P384 = Curve(0x0004, "P-384", 48, ec.SECP384R1())
CURVES = {item.number: item for item in (P256, P384)}


def hash_of(number: int, path: str) -> Hash:
    """The hash of TPM_ALG_ID `number`. Raises `Fault(TPM_ALGORITHM_REFUSED)`."""
    found = HASHES.get(number)
    if found is None:
        raise refused(f"hash 0x{number:04x}", path)
    return found


def refused(what: str, path: str) -> Fault:
    """An algorithm, size or curve outside this module's lists."""
    return Fault(Reason.TPM_ALGORITHM_REFUSED, f"{what} is not allowed", field=path)

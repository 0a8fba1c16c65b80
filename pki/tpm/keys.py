"""What an attestation key and a TLS key must be, attribute by attribute (TPM 2.0 Part 2 §8.3; Part 1 §25-§27).

Every attribute's demand has its own reason here. Two attributes of the AK and the TLS key are left free: `userWithAuth`
and `noDA` say only how the key's owner authorises its use, and `adminWithPolicy`, `stClear` and
`encryptedDuplication` take nothing away from what is proven.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.public import Attribute, EccKey, Public

_OF_ONE_TPM = (
    (Attribute.FIXED_TPM, True, "fixedTPM is clear: the key may be moved to another TPM"),
    (Attribute.FIXED_PARENT, True, "fixedParent is clear: the key may be moved under another parent"),
    (Attribute.SENSITIVE_DATA_ORIGIN, True, "sensitiveDataOrigin is clear: the key was not made by the TPM"),
)
_AK_DEMANDS = (
    (Attribute.RESTRICTED, True, "restricted is clear: the key signs forged attestations too"),
    (Attribute.SIGN, True, "sign is clear"),
    (Attribute.DECRYPT, False, "decrypt is set: an attestation key only signs"),
    (Attribute.X509_SIGN, False, "x509sign is set: an attestation key signs attestations alone"),
    *_OF_ONE_TPM,
)
_TLS_DEMANDS = (
    (Attribute.SIGN, True, "sign is clear"),
    (Attribute.RESTRICTED, False, "restricted is set: the key cannot sign handshakes"),
    (Attribute.DECRYPT, False, "decrypt is set: a TLS key only signs"),
    *_OF_ONE_TPM,
)


class Hierarchy(IntEnum):
    """Permanent handles of the hierarchies (Part 2 §7.4)."""

    OWNER = 0x40000001
    NULL = 0x40000007
    ENDORSEMENT = 0x4000000B
    PLATFORM = 0x4000000C


def check_ak(ak: Public, path: str) -> None:
    """Refuse what is not an attestation key. Raises `Fault(AK_ATTRIBUTE)`."""
    _check_attributes(ak, _AK_DEMANDS, Reason.AK_ATTRIBUTE, path)
    if ak.scheme is None:
        raise Fault(Reason.AK_ATTRIBUTE, "a restricted key has a scheme of its own", field=path)
    if ak.aes_bits:
        raise Fault(Reason.AK_ATTRIBUTE, "a signing key has no symmetric cipher", field=path)


def check_tls_key(key: Public, path: str) -> None:
    """Refuse what is not a TLS key: ECC, signing, unrestricted, made in and fixed to its TPM, scheme none or ECDSA.
    RSA is left out because TLS 1.3 asks for salts as long as the hash (RFC 8446 §4.2.3), which many TPMs do not make.
    Where it sits in the TPM does not matter: an AK of the same TPM certifies it. Raises `Fault(TLS_KEY_ATTRIBUTE)`."""
    _check_attributes(key, _TLS_DEMANDS, Reason.TLS_KEY_ATTRIBUTE, path)
    if not isinstance(key.key, EccKey):
        raise Fault(Reason.TLS_KEY_ATTRIBUTE, "TLS keys are ECC keys, on P-256 or P-384", field=path)
    if key.aes_bits:
        raise Fault(Reason.TLS_KEY_ATTRIBUTE, "a signing key has no symmetric cipher", field=path)


def check_signer(qualified_signer: bytes, ak: Public, path: str) -> None:
    """Refuse an attestation whose signer is not `ak` as a primary of the endorsement hierarchy: only there are
    resetCount, restartCount and firmwareVersion told as they are (Part 1 §36.7). Raises `Fault(AK_HIERARCHY |
    ATTEST_SIGNER)`."""
    if qualified_signer == qualified_name(ak, Hierarchy.ENDORSEMENT):
        return
    for hierarchy in Hierarchy:
        if qualified_signer == qualified_name(ak, hierarchy):
            raise Fault(Reason.AK_HIERARCHY, f"it is in the {hierarchy.name.lower()} hierarchy", field=path)
    raise Fault(Reason.ATTEST_SIGNER, field=path)


def qualified_name(primary: Public, hierarchy: Hierarchy) -> bytes:
    """The qualified Name of a primary key: the hash over its parent's, which is the hierarchy's handle, and its own
    Name (Part 1 §26.5)."""
    digest = hashlib.new(primary.name_hash.name, hierarchy.to_bytes(4, "big") + primary.name).digest()
    return primary.name_hash.number.to_bytes(2, "big") + digest


def _check_attributes(key: Public, demands: tuple[tuple[Attribute, bool, str], ...], reason: Reason, path: str) -> None:
    for attribute, wanted, detail in demands:
        if bool(key.attributes & attribute) is not wanted:
            raise Fault(reason, detail, field=path)

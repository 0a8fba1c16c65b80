"""What the agent gets from a TPM: bytes with names. Imports no TPM library."""

from __future__ import annotations

from dataclasses import dataclass

# Templates that the agent looks for, strongest use of the machine's own certificates first; the names are those of the
# EK Credential Profile v2.6, Annex B (L-2, H-2, H-3, L-1, H-1).
EK_TEMPLATES = ("EK-ECC256", "EK-HIGH-ECC256", "EK-HIGH-ECC384", "EK-RSA2048", "EK-HIGH-RSA2048")


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An EK and the certificate in the TPM's NV. `template` is one of `EK_TEMPLATES`; `certificate` and `chain` are
    DER, without the padding that NV areas may hold; `public` is TPMT_PUBLIC."""

    template: str
    certificate: bytes
    chain: tuple[bytes, ...]
    public: bytes


@dataclass(frozen=True, slots=True)
class TlsKeyFile:
    """A TLS key of this TPM. `pem` is the TSS 2.0 key file: the private part in it is encrypted by the TPM and useless
    elsewhere. `public` is TPMT_PUBLIC, `spki` the DER SubjectPublicKeyInfo."""

    pem: bytes
    public: bytes
    spki: bytes

    def __repr__(self) -> str:
        return "TlsKeyFile()"


@dataclass(frozen=True, slots=True)
class Attested:
    """A structure signed inside the TPM: TPMS_ATTEST and TPMT_SIGNATURE, marshalled."""

    attest: bytes
    signature: bytes


MAX_SEALED_BYTES = 128  # TPM 2.0 Part 2 §11.1.14, MAX_SYM_DATA


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret that one TPM gives back in one boot state: TPM2B_PUBLIC and TPM2B_PRIVATE, marshalled."""

    public: bytes
    private: bytes

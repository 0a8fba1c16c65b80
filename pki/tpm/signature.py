"""TPMT_SIGNATURE, and whether it is by a key's own scheme over the very octets (TPM 2.0 Part 2 §11.3)."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.algorithms import Algorithm, hash_of, refused
from pki.tpm.public import Public, Scheme
from pki.tpm.reader import Reader, sized

_MAX_RSA_OCTETS = 512
_MAX_ECC_OCTETS = 48


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed TPMT_SIGNATURE: `parts` is (signature,) for RSA and (r, s) for ECDSA."""

    scheme: Scheme
    parts: tuple[bytes, ...]

    @classmethod
    def parse(cls, raw: bytes, path: str) -> Signature:
        """The one TPMT_SIGNATURE in `raw`. Raises `Fault(TPM_STRUCTURE_MALFORMED | TPM_TRAILING_BYTES |
        TPM_ALGORITHM_REFUSED)`."""
        reader = Reader(raw, path)
        algorithm = reader.integer(2)
        if algorithm not in (Algorithm.RSASSA, Algorithm.RSAPSS, Algorithm.ECDSA):
            raise refused(f"signature 0x{algorithm:04x}", path)
        scheme = Scheme(Algorithm(algorithm), hash_of(reader.integer(2), path))
        parts: tuple[bytes, ...]
        if algorithm == Algorithm.ECDSA:
            parts = (reader.sized(_MAX_ECC_OCTETS), reader.sized(_MAX_ECC_OCTETS))
        else:
            parts = (reader.sized(_MAX_RSA_OCTETS),)
        reader.finish()
        return cls(scheme, parts)

    def marshal(self) -> bytes:
        """The fields in TPM order."""
        head = self.scheme.algorithm.to_bytes(2, "big") + self.scheme.hash.number.to_bytes(2, "big")
        return head + b"".join(map(sized, self.parts))


def check_signature(signer: Public, signed: bytes, raw: bytes, path: str) -> None:
    """Refuse unless the TPMT_SIGNATURE in `raw` is by `signer`, with the scheme and hash of its public area, over
    `signed`. Raises `Fault(ATTEST_SIGNATURE)` and the faults of `Signature.parse`."""
    signature = Signature.parse(raw, path)
    if signature.scheme != signer.scheme:
        raise Fault(Reason.ATTEST_SIGNATURE, "another scheme than the key's own", field=path)
    try:
        _verify(signer, signature, signed)
    except InvalidSignature:
        raise Fault(Reason.ATTEST_SIGNATURE, field=path) from None


def _verify(signer: Public, signature: Signature, signed: bytes) -> None:
    digest, key = signature.scheme.hash.primitive, signer.primitive
    if isinstance(key, ec.EllipticCurvePublicKey):
        r, s = (int.from_bytes(part, "big") for part in signature.parts)
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
    elif signature.scheme.algorithm == Algorithm.RSASSA:
        key.verify(signature.parts[0], signed, padding.PKCS1v15(), digest)
    else:
        _verify_pss(key, signature, signed)


def _verify_pss(key: rsa.RSAPublicKey, signature: Signature, signed: bytes) -> None:
    """The salt is as long as the hash or as fits, by the TPM's age (Part 1 §B.7): either verifies."""
    digest = signature.scheme.hash.primitive
    pss = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO)
    key.verify(signature.parts[0], signed, pss, digest)

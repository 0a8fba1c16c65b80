"""TPMT_PUBLIC: a key's public area, and the Name that binds it (TPM 2.0 Part 2 §12.2.4; Part 1 §16).

Laws held here:
- every octet is read into a field, and marshalling the fields gives the same octets again;
- the Name is computed over the octets as they came: what was parsed is what is named.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntFlag

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.algorithms import CURVES, Algorithm, Curve, Hash, hash_of, refused
from pki.tpm.reader import Reader, sized

RSA_BITS = (2048, 3072, 4096)
RSA_DEFAULT_EXPONENT = 65537
_SCHEMES = {Algorithm.RSA: (Algorithm.RSASSA, Algorithm.RSAPSS), Algorithm.ECC: (Algorithm.ECDSA,)}
_AES_BITS = (128, 256)


class Attribute(IntFlag):
    """TPMA_OBJECT (Part 2 §8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


_DEFINED = sum(Attribute)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A signing scheme: RSASSA, RSAPSS or ECDSA, with its hash (Part 2 §11.2)."""

    algorithm: Algorithm
    hash: Hash


@dataclass(frozen=True, slots=True)
class RsaKey:
    """`exponent` as the TPM writes it, where 0 means 65537 (Part 2 §12.2.3.5)."""

    bits: int
    exponent: int
    modulus: bytes

    @property
    def public_exponent(self) -> int:
        return self.exponent or RSA_DEFAULT_EXPONENT

    def primitive(self) -> rsa.RSAPublicKey:
        return rsa.RSAPublicNumbers(self.public_exponent, int.from_bytes(self.modulus, "big")).public_key()


@dataclass(frozen=True, slots=True)
class EccKey:
    """Coordinates as the TPM writes them: some leave out leading zeros."""

    curve: Curve
    x: bytes
    y: bytes

    def primitive(self) -> ec.EllipticCurvePublicKey:
        x, y = int.from_bytes(self.x, "big"), int.from_bytes(self.y, "big")
        return ec.EllipticCurvePublicNumbers(x, y, self.curve.primitive).public_key()


@dataclass(frozen=True, slots=True)
class Public:
    """A parsed public area. `aes_bits` is the symmetric cipher of a storage key (AES in CFB mode), 0 where there is
    none; `spki` the key's DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), `rsaEncryption` or a named curve."""

    raw: bytes
    name_hash: Hash
    attributes: Attribute
    auth_policy: bytes
    aes_bits: int
    scheme: Scheme | None
    key: RsaKey | EccKey
    primitive: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    name: bytes
    spki: bytes

    @classmethod
    def parse(cls, raw: bytes, path: str) -> Public:
        """The one TPMT_PUBLIC in `raw`; `path` names it in faults. Raises `Fault(TPM_STRUCTURE_MALFORMED |
        TPM_TRAILING_BYTES | TPM_ALGORITHM_REFUSED | WEAK_KEY)`, the last for a point off its curve."""
        reader = Reader(raw, path)
        kind, name_hash = reader.integer(2), hash_of(reader.integer(2), path)
        if kind not in _SCHEMES:
            raise refused(f"key type 0x{kind:04x}", path)
        attributes, auth_policy = _attributes(reader), reader.sized(64)
        if auth_policy and len(auth_policy) != name_hash.size:
            raise reader.fault("the policy's size is not that of the name's hash")
        aes_bits, scheme = _symmetric(reader), _scheme(reader, Algorithm(kind))
        key = _rsa(reader) if kind == Algorithm.RSA else _ecc(reader)
        reader.finish()
        primitive = _primitive(key, path)
        name = name_of(name_hash, raw)
        spki = primitive.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        public = cls(raw, name_hash, attributes, auth_policy, aes_bits, scheme, key, primitive, name, spki)
        if public.marshal() != raw:
            raise reader.fault("it is not spelled as a TPM does")
        return public

    def marshal(self) -> bytes:
        """The fields in TPM order."""
        kind = Algorithm.RSA if isinstance(self.key, RsaKey) else Algorithm.ECC
        head = _u16(kind) + _u16(self.name_hash.number) + self.attributes.to_bytes(4, "big") + sized(self.auth_policy)
        aes = _u16(Algorithm.AES) + _u16(self.aes_bits) + _u16(Algorithm.CFB) if self.aes_bits else _u16(Algorithm.NULL)
        scheme = self.scheme
        signing = _u16(scheme.algorithm) + _u16(scheme.hash.number) if scheme else _u16(Algorithm.NULL)
        return head + aes + signing + _marshal_key(self.key)


def name_of(name_hash: Hash, public_area: bytes) -> bytes:
    """An object's Name: its hash's number, then the hash of its public area (Part 1 §16, eq. 6)."""
    return _u16(name_hash.number) + hashlib.new(name_hash.name, public_area).digest()


def _attributes(reader: Reader) -> Attribute:
    bits = reader.integer(4)
    if bits & ~_DEFINED:
        raise reader.fault("reserved attribute bits are set")
    return Attribute(bits)


def _symmetric(reader: Reader) -> int:
    """TPMT_SYM_DEF_OBJECT: AES-128 or AES-256 in CFB, or none (Part 2 §11.1.7)."""
    algorithm = reader.integer(2)
    if algorithm == Algorithm.NULL:
        return 0
    bits, mode = reader.integer(2), reader.integer(2)
    if algorithm != Algorithm.AES or bits not in _AES_BITS or mode != Algorithm.CFB:
        raise refused(f"symmetric cipher 0x{algorithm:04x} of {bits} bits in mode 0x{mode:04x}", reader.path)
    return bits


def _scheme(reader: Reader, kind: Algorithm) -> Scheme | None:
    """TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (Part 2 §11.2.4, §11.2.5)."""
    algorithm = reader.integer(2)
    if algorithm == Algorithm.NULL:
        return None
    if algorithm not in _SCHEMES[kind]:
        raise refused(f"scheme 0x{algorithm:04x}", reader.path)
    return Scheme(Algorithm(algorithm), hash_of(reader.integer(2), reader.path))


def _rsa(reader: Reader) -> RsaKey:
    """The rest of TPMS_RSA_PARMS and TPM2B_PUBLIC_KEY_RSA (Part 2 §12.2.3.5, §11.2.4.5)."""
    bits, exponent = reader.integer(2), reader.integer(4)
    if bits not in RSA_BITS:
        raise refused(f"RSA of {bits} bits", reader.path)
    modulus = reader.sized(bits // 8)
    if len(modulus) != bits // 8 or not modulus[0] & 0x80:
        raise reader.fault(f"the modulus has not {bits} bits")
    return RsaKey(bits, exponent, modulus)


def _ecc(reader: Reader) -> EccKey:
    """The rest of TPMS_ECC_PARMS and TPMS_ECC_POINT (Part 2 §12.2.3.6, §11.2.5.2)."""
    number, kdf = reader.integer(2), reader.integer(2)
    curve = CURVES.get(number)
    if curve is None:
        raise refused(f"curve 0x{number:04x}", reader.path)
    if kdf != Algorithm.NULL:
        raise refused(f"key derivation 0x{kdf:04x}", reader.path)
    return EccKey(curve, reader.sized(curve.size), reader.sized(curve.size))


def _primitive(key: RsaKey | EccKey, path: str) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        return key.primitive()
    except ValueError:
        detail = "not a point of its curve" if isinstance(key, EccKey) else "not an RSA key"
        raise Fault(Reason.WEAK_KEY, detail, field=path) from None


def _marshal_key(key: RsaKey | EccKey) -> bytes:
    if isinstance(key, RsaKey):
        return _u16(key.bits) + key.exponent.to_bytes(4, "big") + sized(key.modulus)
    return _u16(key.curve.number) + _u16(Algorithm.NULL) + sized(key.x) + sized(key.y)


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")

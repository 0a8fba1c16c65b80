"""A TPM in name only: its keys are here, so that it signs whatever an attacker would like to have signed.

Structures are packed by hand (TPM 2.0 Part 2), apart from the code that parses them. `tests/pki/tpm` holds the same
verdict against a real emulator.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.measured_boot import Measurement, event_log, healthy_boot
from deploy.demo.tpm_maker import TpmMaker
from foundation.wire.enrolment import Begin, Evidence, PcrSelection
from pki.tpm.verdict import Expected

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

RSA, SHA1, AES, NULL, RSASSA, RSAPSS, ECDSA, ECC, CFB = 0x01, 0x04, 0x06, 0x10, 0x14, 0x16, 0x18, 0x23, 0x43
SHA256, SHA384 = 0x0B, 0x0C
FIXED_TPM, FIXED_PARENT, ORIGIN, USER, ADMIN = 1 << 1, 1 << 4, 1 << 5, 1 << 6, 1 << 7
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
AK = FIXED_TPM | FIXED_PARENT | ORIGIN | USER | RESTRICTED | SIGN
TLS = FIXED_TPM | FIXED_PARENT | ORIGIN | USER | SIGN
EK_LOW = FIXED_TPM | FIXED_PARENT | ORIGIN | ADMIN | RESTRICTED | DECRYPT
POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
MAGIC, CERTIFY, QUOTE = 0xFF544347, 0x8017, 0x8018
OWNER, ENDORSEMENT = 0x40000001, 0x4000000B
NOW = 1_795_000_000.0
PCRS = PcrSelection("sha256", tuple(range(8)))
_NAMES = {SHA256: "sha256", SHA384: "sha384"}
_CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}


def sized(raw: bytes) -> bytes:
    return struct.pack(">H", len(raw)) + raw


def public_area(
    key: PublicKey,
    attributes: int,
    *,
    policy: bytes = b"",
    aes: int = 0,
    scheme: int = ECDSA,
    scheme_hash: int = SHA256,
    name_hash: int = SHA256,
    exponent: int | None = None,
) -> bytes:
    """TPMT_PUBLIC of `key`."""
    kind = RSA if isinstance(key, rsa.RSAPublicKey) else ECC
    area = struct.pack(">HHI", kind, name_hash, attributes) + sized(policy)
    area += struct.pack(">HHH", AES, aes, CFB) if aes else struct.pack(">H", NULL)
    area += struct.pack(">H", scheme) + (b"" if scheme == NULL else struct.pack(">H", scheme_hash))
    if isinstance(key, rsa.RSAPublicKey):
        numbers, size = key.public_numbers(), key.key_size
        written = (0 if numbers.e == 65537 else numbers.e) if exponent is None else exponent
        return area + struct.pack(">HI", size, written) + sized(numbers.n.to_bytes(size // 8, "big"))
    point, octets = key.public_numbers(), (key.curve.key_size + 7) // 8
    area += struct.pack(">HH", _CURVES[key.curve.name], NULL)
    return area + sized(point.x.to_bytes(octets, "big")) + sized(point.y.to_bytes(octets, "big"))


def name_of(area: bytes) -> bytes:
    number = struct.unpack(">H", area[2:4])[0]
    return area[2:4] + hashlib.new(_NAMES[number], area).digest()


def qualified(area: bytes, handle: int = ENDORSEMENT) -> bytes:
    """The qualified Name of a primary key of the hierarchy `handle`."""
    number = struct.unpack(">H", area[2:4])[0]
    return area[2:4] + hashlib.new(_NAMES[number], struct.pack(">I", handle) + name_of(area)).digest()


def selection(*banks: tuple[int, tuple[int, ...]]) -> bytes:
    """TPML_PCR_SELECTION."""
    body = b"".join(struct.pack(">HB", bank, 3) + sum(1 << n for n in ns).to_bytes(3, "little") for bank, ns in banks)
    return struct.pack(">I", len(banks)) + body


def signature(key: Key, data: bytes, scheme: int | None = None) -> bytes:
    """TPMT_SIGNATURE with SHA-256."""
    if isinstance(key, rsa.RSAPrivateKey):
        pads: dict[int, Any] = {RSASSA: padding.PKCS1v15(), RSAPSS: padding.PSS(padding.MGF1(hashes.SHA256()), 32)}
        scheme = scheme or RSASSA
        return struct.pack(">HH", scheme, SHA256) + sized(key.sign(data, pads[scheme], hashes.SHA256()))
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    size = (key.curve.key_size + 7) // 8
    return struct.pack(">HH", ECDSA, SHA256) + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))


def boot(events: tuple[Measurement, ...], bank: str = "sha256", locality: int = 0) -> dict[int, bytes]:
    """PCRs 0 to 23 after `events`."""
    size = hashlib.new(bank).digest_size
    values = {n: bytes(size) for n in range(24)} | dict.fromkeys(range(17, 23), b"\xff" * size)
    values[0] = locality.to_bytes(size, "big")
    for event in events:
        values[event.pcr] = hashlib.new(bank, values[event.pcr] + event.digest(bank)).digest()
    return values


def request(key: Key, signer: Key | None = None) -> bytes:
    """A DER PKCS #10 for `key`; with another `signer` its signature is wrong."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    right = builder.sign(key, hashes.SHA256())
    if signer is None:
        return right.public_bytes(Encoding.DER)
    wrong = builder.sign(signer, hashes.SHA256())
    return right.public_bytes(Encoding.DER)[: -len(right.signature)] + wrong.signature[: len(right.signature)].ljust(
        len(right.signature), b"\0"
    )


@dataclass
class SoftTpm:
    """A device of `maker`. Every attribute may be bent before `begin` and `evidence` are asked for."""

    maker: TpmMaker
    ek: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ak: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    tls: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ak_attributes: int = AK
    tls_attributes: int = TLS
    hierarchy: int = ENDORSEMENT
    clock: tuple[int, int, int, int] = (100_000, 7, 0, 1)  # clock, resetCount, restartCount, safe
    events: tuple[Measurement, ...] = field(default_factory=healthy_boot)

    @property
    def ek_area(self) -> bytes:
        return public_area(self.ek.public_key(), EK_LOW, policy=POLICY_A, aes=128, scheme=NULL)

    @property
    def ak_area(self) -> bytes:
        scheme = RSASSA if isinstance(self.ak, rsa.RSAPrivateKey) else ECDSA
        return public_area(self.ak.public_key(), self.ak_attributes, scheme=scheme)

    @property
    def tls_area(self) -> bytes:
        return public_area(self.tls.public_key(), self.tls_attributes)

    @property
    def certificate(self) -> bytes:
        return self.maker.certify_ek(self.ek.public_key()).public_bytes(Encoding.DER)

    def begin(self, **changes: Any) -> Begin:
        fields = {
            "purpose": "enrol",
            "attestation": "tpm",
            "node": "node-1",
            "token": "",
            "ek_certificate": self.certificate,
            "ek_chain": self.maker.chain,
            "ek_public": self.ek_area,
            "ak_public": self.ak_area,
            "tls_public": self.tls_area,
        }
        return Begin(**{**fields, **changes})

    def attest(self, kind: int, extra: bytes, body: bytes, /, **changes: Any) -> bytes:
        """TPMS_ATTEST."""
        signer = changes.get("signer", qualified(self.ak_area, self.hierarchy))
        head = struct.pack(">IH", changes.get("magic", MAGIC), changes.get("kind", kind)) + sized(signer) + sized(extra)
        return head + struct.pack(">QIIB", *changes.get("clock", self.clock)) + struct.pack(">Q", 0x20260101) + body

    def certify(self, extra: bytes, **changes: Any) -> bytes:
        area = self.tls_area
        name = changes.get("name", name_of(area))
        return self.attest(CERTIFY, extra, sized(name) + sized(qualified(area, OWNER)), **changes)

    def quote(self, extra: bytes, **changes: Any) -> bytes:
        values = changes.get("values", self.values(PCRS))
        digest = hashlib.sha256(b"".join(values)).digest()
        picked = changes.get("selection", selection((SHA256, PCRS.indices)))
        return self.attest(QUOTE, extra, picked + sized(digest), **changes)

    def values(self, pcrs: PcrSelection) -> tuple[bytes, ...]:
        held = boot(self.events, pcrs.bank)
        return tuple(held[n] for n in pcrs.indices)

    def evidence(self, asked: Expected, **changes: Any) -> Evidence:
        """What an honest node would send, with `changes` to whole fields."""
        certify = changes.pop("certify_attest", None) or self.certify(asked.qualifying("certify"))
        quote = changes.pop("quote_attest", None) or self.quote(asked.qualifying("quote"))
        fields = {
            "certify_attest": certify,
            "certify_signature": signature(self.ak, certify),
            "quote_attest": quote,
            "quote_signature": signature(self.ak, quote),
            "pcr_values": self.values(PCRS),
            "event_log": event_log(self.events, ("sha1", "sha256")),
            "csr": request(self.tls),
        }
        return Evidence(**{**fields, **changes})


def asked(**changes: Any) -> Expected:
    """What an authority asked."""
    fields = {
        "purpose": "enrol",
        "session": b"s" * 16,
        "nonce": b"n" * 32,
        "first_message": b"{}",
        "server_spki_sha256": b"k" * 32,
        "pcrs": PCRS,
    }
    return Expected(**{**fields, **changes})

"""A TPM maker for demonstrations and tests: a root, an intermediate, and EK certificates as the TCG profile has them.

Source: TCG EK Credential Profile for TPM Family 2.0, v2.6, §3.2 (certificate fields) and §3.4 (chains). Nothing here is
for production: the keys live in memory and vouch for emulators.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

EkKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

TPM_MANUFACTURER = ObjectIdentifier("2.23.133.2.1")
TPM_MODEL = ObjectIdentifier("2.23.133.2.2")
TPM_VERSION = ObjectIdentifier("2.23.133.2.3")
EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")
_START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2049, 12, 31, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class TpmMaker:
    """A maker with its keys. `intermediate` signs EK certificates and is what devices carry in NV; `root` is what an
    authority pins. `manufacturer` is the TCG vendor ID's hexadecimal form, such as `id:54534D4B`."""

    root: x509.Certificate
    intermediate: x509.Certificate
    intermediate_key: ec.EllipticCurvePrivateKey = field(repr=False)
    manufacturer: str = "id:54534D4B"
    model: str = "sallyport-emulated"
    version: str = "id:00010001"

    @classmethod
    def create(cls, name: str = "Emulated TPM Maker", **identity: str) -> TpmMaker:
        """A new maker with fresh keys; `identity` sets manufacturer, model and version."""
        root_key, intermediate_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        root_name, intermediate_name = _name(f"{name} Root"), _name(f"{name} EK Intermediate")
        root = _authority(root_name, root_key.public_key(), root_name, path_length=1).sign(root_key, hashes.SHA384())
        intermediate = _authority(intermediate_name, intermediate_key.public_key(), root_name, path_length=0)
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        signed = intermediate.add_extension(issuer_id, critical=False).sign(root_key, hashes.SHA384())
        return cls(root, signed, intermediate_key, **identity)

    @property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The intermediate's DER, as devices carry it."""
        return (self.intermediate.public_bytes(Encoding.DER),)

    def certify_ek(self, key: EkKey) -> x509.Certificate:
        """The EK certificate for this key, exactly as the profile asks for it."""
        return self.sign(self.ek_builder(key))

    def ek_builder(
        self,
        key: EkKey,
        *,
        san: x509.SubjectAlternativeName | None = None,
        usages: tuple[ObjectIdentifier, ...] = (EK_CERTIFICATE,),
        not_before: datetime.datetime = _START,
        not_after: datetime.datetime = _END,
    ) -> x509.CertificateBuilder:
        """An unsigned EK certificate: tests bend it before `sign`. The subject is empty, so the SAN is critical
        (RFC 5280 §4.1.2.6)."""
        usage = "key_encipherment" if isinstance(key, rsa.RSAPublicKey) else "key_agreement"
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.intermediate_key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.intermediate.subject)
            .public_key(key)
            .serial_number(_serial())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(san or self.device_name(), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(issuer_id, critical=False)
        )

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self.intermediate_key, hashes.SHA256())

    def device_name(self) -> x509.SubjectAlternativeName:
        """The directoryName with the TPM's maker, model and version (profile §3.2.9)."""
        values = ((TPM_MANUFACTURER, self.manufacturer), (TPM_MODEL, self.model), (TPM_VERSION, self.version))
        name = x509.Name([x509.NameAttribute(oid, value) for oid, value in values])
        return x509.SubjectAlternativeName([x509.DirectoryName(name)])


def _authority(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, *, path_length: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(_serial())
        .not_valid_before(_START)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _serial() -> int:
    """Positive and at most 20 octets (RFC 5280 §4.1.2.2)."""
    return secrets.randbits(158) | 1 << 158


def _key_usage(*usages: str) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in usages for name in names})

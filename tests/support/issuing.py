"""An issuing CA in memory, and certificates drafted under it."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from foundation.identifiers import SpiffeId
from foundation.identity import AttestationClass
from pki.bootstrap import CA_USAGE
from pki.profile import PROFILES, Issuer, ProfileName, Terms, draft_certificate
from pki.signer import Draft

NOW = 1_800_000_000
KEY = ec.generate_private_key(ec.SECP256R1())


def _ca() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test issuing")])
    start = datetime.datetime.fromtimestamp(NOW - 1000, datetime.UTC)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 7, start, start + datetime.timedelta(days=300))
    builder = builder.add_extension(x509.BasicConstraints(True, 0), True).add_extension(CA_USAGE, True)
    return builder.add_extension(x509.SubjectKeyIdentifier(b"k" * 20), False).sign(KEY, hashes.SHA256())


CA = _ca()
ISSUER = Issuer.of(CA)
DRAFT = Draft(CA)


def spki_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


SPKI = spki_of(ec.generate_private_key(ec.SECP256R1()))


def terms(name: ProfileName = ProfileName.NODE, **more: object) -> Terms:
    profile = PROFILES[name]
    values: dict[str, object] = {
        "profile": profile,
        "identity": SpiffeId("fleet.example", profile.kinds[0], "edge-1"),
        "spki": SPKI,
        "serial": (1 << 143) | 5,
        "now": NOW,
        "attestation": AttestationClass.VIRTUAL,
        "attested_until": NOW + 300,
        "names": ("gateway.example", "127.0.0.1", "::1") if profile.named else (),
    }
    return Terms(**values | more)  # type: ignore[arg-type]


def draft(wanted: Terms) -> x509.Certificate:
    return DRAFT.certificate(draft_certificate(wanted, ISSUER))

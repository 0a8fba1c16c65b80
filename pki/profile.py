"""What a certificate says is decided here, from the authority's own records. The request gives the key, nothing else.

A profile is a row of `PROFILES`; `draft_certificate` applies one. Both are pure: values in, a builder out.
`pki.lint` checks the result against the same row and RFC 5280 before anything is signed.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
from dataclasses import dataclass, replace
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.attestation import ATTESTATION_OID, CertifiedAttestation

HOUR = 3600
BACKDATED_SECONDS = 60  # what the clocks of node and authority may differ
SERIAL_BITS = 143  # random bits below the topmost: 18 octets at most, always positive (RFC 5280 §4.1.2.2 allows 20)
MAX_NAMES = 64
_CURVES = ("secp256r1", "secp384r1")
_DNS_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)


class ProfileName(StrEnum):
    """Which rules a certificate follows."""

    NODE = "node"
    GATEWAY = "gateway"
    OPERATOR = "operator"
    SERVICE = "service"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Profile:
    """One row. `lifetime` is what is given when nothing is asked, `longest` the most that may be asked, in seconds.
    `kinds` are the identities it may be issued to. `named` profiles also carry DNS names and IP addresses: a server's
    come from settings, a gateway's from its inventory entry (`pki.entries.gateway_names`). `speaks` are the extended
    key usages (RFC 5280 §4.2.1.12)."""

    name: ProfileName
    kinds: tuple[Kind, ...]
    lifetime: int
    longest: int
    speaks: tuple[x509.ObjectIdentifier, ...]
    named: bool = False


_CLIENT, _SERVER = (ExtendedKeyUsageOID.CLIENT_AUTH,), (ExtendedKeyUsageOID.SERVER_AUTH,)
PROFILES: dict[ProfileName, Profile] = {
    row.name: row
    for row in (
        Profile(ProfileName.NODE, (Kind.NODE,), HOUR, 24 * HOUR, _CLIENT),
        Profile(ProfileName.GATEWAY, (Kind.GATEWAY,), 24 * HOUR, 24 * HOUR, _CLIENT + _SERVER, named=True),
        Profile(ProfileName.SERVICE, (Kind.SERVICE,), HOUR, 24 * HOUR, _CLIENT),
        Profile(ProfileName.OPERATOR, (Kind.OPERATOR,), 8 * HOUR, 24 * HOUR, _CLIENT),
        Profile(ProfileName.SERVER, (Kind.GATEWAY,), 30 * 24 * HOUR, 90 * 24 * HOUR, _SERVER, named=True),
    )
}


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long each profile's certificates live when nothing shorter is asked, in seconds; from the settings."""

    node: int = HOUR
    gateway: int = 24 * HOUR  # a gateway serves on while the authority is away, and has to outlive that
    service: int = HOUR
    operator: int = 8 * HOUR
    server: int = 30 * 24 * HOUR

    @classmethod
    def parse(cls, fields: Fields) -> Lifetimes:
        """The section [authority.lifetimes]. Raises `Fault(SETTING_INVALID)` for one that its profile forbids."""
        found = {name.value: _lifetime(fields, PROFILES[name]) for name in ProfileName}
        fields.finish()
        return cls(**found)

    def profile(self, name: ProfileName) -> Profile:
        """The row of `name` with its lifetime."""
        return replace(PROFILES[name], lifetime=getattr(self, name.value))


@dataclass(frozen=True, slots=True)
class Terms:
    """Everything that a certificate is made of. Times are whole seconds since the Unix epoch; `lifetime` 0 means the
    profile's own. `names` are DNS names and IP addresses, for `named` profiles alone."""

    profile: Profile
    identity: SpiffeId
    spki: bytes
    serial: int
    now: int
    lifetime: int = 0
    attestation: AttestationClass = AttestationClass.NONE
    attested_until: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Issuer:
    """What every certificate takes from the CA's own; read once, for parsing it again costs as much as signing."""

    name: x509.Name
    key_identifier: bytes
    not_before: int
    not_after: int

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Issuer:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(certificate.subject, identifier, int(start.timestamp()), int(end.timestamp()))


def draft_certificate(terms: Terms, issuer: Issuer) -> x509.CertificateBuilder:
    """The certificate that `terms` come to under `issuer`: subject CN is the identity's name, the SAN holds its SPIFFE
    ID as the only URI (X509-SVID §2), and criticality follows RFC 5280 §4.2. Raises `Fault(PROFILE_REFUSED |
    WEAK_KEY)`."""
    key = check_key(terms.spki)
    not_before, not_after = validity(terms, issuer)
    builder = x509.CertificateBuilder(
        issuer_name=issuer.name,
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, terms.identity.name)]),
        public_key=key,
        serial_number=terms.serial,
        not_valid_before=_instant(not_before),
        not_valid_after=_instant(not_after),
    )
    for extension, critical in _extensions(terms, issuer):
        builder = builder.add_extension(extension, critical)
    return builder


def validity(terms: Terms, issuer: Issuer) -> tuple[int, int]:
    """When the certificate begins and ends: never outside the issuer's own validity. Raises
    `Fault(PROFILE_REFUSED)`."""
    profile = terms.profile
    if terms.identity.kind not in profile.kinds:
        raise _refused(f"the profile {profile.name} is not for the kind {terms.identity.kind}", "profile")
    lifetime = terms.lifetime or profile.lifetime
    if not 0 < lifetime <= profile.longest:
        raise _refused(f"a lifetime is from 1 to {profile.longest} seconds", "lifetime")
    not_after = min(terms.now + lifetime, issuer.not_after)
    not_before = max(terms.now - BACKDATED_SECONDS, issuer.not_before)
    if not issuer.not_before <= terms.now < not_after:
        raise _refused("the issuing CA's own certificate is not valid now", "lifetime")
    return not_before, not_after


def san(terms: Terms) -> x509.SubjectAlternativeName:
    """The names of the certificate. Raises `Fault(PROFILE_REFUSED)`."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(terms.identity))]
    if bool(terms.names) is not terms.profile.named or len(terms.names) > MAX_NAMES:
        raise _refused("DNS names and IP addresses belong to gateways and servers, from 1 to 64", "names")
    names.extend(_server_name(name) for name in terms.names)
    return x509.SubjectAlternativeName(names)


def check_key(spki: bytes) -> CertificatePublicKeyTypes:
    """The public key in `spki`, a DER SubjectPublicKeyInfo, when it may be certified: ECDSA on P-256 or P-384, RSA of
    2048 to 4096 bits with exponent 65537, spelled in the one way that DER allows. Raises `Fault(WEAK_KEY)`."""
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise _weak("not a public key") from None
    if isinstance(key, rsa.RSAPublicKey):
        allowed = 2048 <= key.key_size <= 4096 and key.public_numbers().e == 65537
    else:
        allowed = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    if not allowed:
        raise _weak("certified are ECDSA keys on P-256 and P-384, and RSA keys of 2048 to 4096 bits")
    if key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo) != spki:
        raise _weak("the key is not spelled in DER")
    return key  # type: ignore[return-value]  # narrowed above, in a way that mypy does not follow


def key_identifier(spki: bytes) -> bytes:
    """The leftmost 160 bits of the SHA-256 of the key's BIT STRING (RFC 7093 §2, method 1)."""
    key = serialization.load_der_public_key(spki)
    if isinstance(key, ec.EllipticCurvePublicKey):
        bits = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    else:
        bits = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    return hashlib.sha256(bits).digest()[:20]


_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,  # all that TLS 1.3 asks of a key (RFC 8446 §4.4.2.2)
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _extensions(terms: Terms, issuer: Issuer) -> list[tuple[x509.ExtensionType, bool]]:
    attestation = CertifiedAttestation(terms.attestation, terms.attested_until).encode()
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_KEY_USAGE, True),
        (x509.ExtendedKeyUsage(terms.profile.speaks), False),
        (san(terms), False),  # not critical, for the subject is not empty (RFC 5280 §4.2.1.6)
        (x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None), False),
        (x509.SubjectKeyIdentifier(key_identifier(terms.spki)), False),
        (x509.UnrecognizedExtension(ATTESTATION_OID, attestation), False),
    ]


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(_dns_name(name))


def _dns_name(name: str) -> str:
    # No wildcards: a listener knows its names. A last label of digits alone would be read as an address.
    labels = name.split(".")
    if len(name) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise _refused("a DNS name is lower-case labels of a-z, 0-9 and '-', without wildcards", "names")
    return name


def _lifetime(fields: Fields, profile: Profile) -> int:
    seconds = int(fields.duration(profile.name.value, f"{profile.lifetime}s"))
    if not 60 <= seconds <= profile.longest:
        raise fields.fault(profile.name.value, f"expected from 60s to {profile.longest}s")
    return seconds


def _instant(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _refused(detail: str, field: str) -> Fault:
    return Fault(Reason.PROFILE_REFUSED, detail, field=field)


def _weak(detail: str) -> Fault:
    return Fault(Reason.WEAK_KEY, detail, field="public_key")

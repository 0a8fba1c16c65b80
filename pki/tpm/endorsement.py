"""The EK certificate: by which maker is this TPM, and is that maker one of those we pinned?

Source: TCG EK Credential Profile v2.6 §3; RFC 5280. Time is a parameter, roots are values. What kind of TPM it is
follows from the root alone: whatever chains to a `virtual` root is virtual, whatever its certificate says.

Certificate policies may be critical, as in many makers' certificates: every policy is accepted (RFC 5280 §6.1.1, the
user-initial-policy-set is any-policy), so they restrict nothing. Signatures with SHA-1 are refused; a maker whose root
signed that way is pinned by its intermediate.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509 import verification
from cryptography.x509.oid import ExtensionOID

from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from pki.tpm.der import UNREADABLE, check_der, children, content
from pki.tpm.public import Public

_E = TypeVar("_E", bound=x509.ExtensionType)
TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
TPM_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
TPM_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
MAX_CHAIN_DEPTH = 4  # between the EK's certificate and the root
_MAX_NAME_CHARACTERS = 64
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
_ANY_CRITICALITY = verification.Criticality.AGNOSTIC
_AUTHORITIES = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(
    x509.CertificatePolicies, _ANY_CRITICALITY, None
)
_LEAVES = verification.ExtensionPolicy.permit_all().may_be_present(x509.CertificatePolicies, _ANY_CRITICALITY, None)
_RSAES_OAEP = bytes.fromhex("06092a864886f70d010107")  # 1.2.840.113549.1.1.7 (RFC 4055 §4)


@dataclass(frozen=True, slots=True)
class MakerTrust:
    """The pinned roots of TPM makers, of hardware and of emulators or hypervisors. Raises `Fault(SETTING_INVALID)` for
    a root that stands in both."""

    hardware: tuple[x509.Certificate, ...] = ()
    virtual: tuple[x509.Certificate, ...] = ()

    def __post_init__(self) -> None:
        if set(self.hardware) & set(self.virtual):
            raise Fault(Reason.SETTING_INVALID, "a root is pinned as hardware and as virtual", field="makers")

    def roots(self, attestation: AttestationClass) -> tuple[x509.Certificate, ...]:
        """The roots that give this class."""
        return self.virtual if attestation is AttestationClass.VIRTUAL else self.hardware

    def classify(
        self, certificate: x509.Certificate, chain: tuple[x509.Certificate, ...], now: float, path: str
    ) -> AttestationClass:
        """See `classify`."""
        return classify(certificate, chain, self, now, path)


@dataclass(frozen=True, slots=True)
class Maker:
    """What the certificate says of the TPM: `maker` is the TCG vendor ID (such as `id:49465800`), `version` that of
    the firmware at manufacture."""

    maker: str
    model: str
    version: str


def load_certificate(raw: bytes, path: str) -> x509.Certificate:
    """The one certificate in `raw`, in strict DER. Raises `Fault(EK_CERTIFICATE_MALFORMED)`."""
    check_der(raw, Reason.EK_CERTIFICATE_MALFORMED, path)
    try:
        certificate = x509.load_der_x509_certificate(raw)
        certificate.extensions  # noqa: B018  # parsed lazily: malformed ones must show here
    except UNREADABLE as error:
        detail = "not an X.509 certificate"
        raise Fault(Reason.EK_CERTIFICATE_MALFORMED, detail, field=path, internal=str(error)) from None
    if certificate.serial_number <= 0:  # RFC 5280 §4.1.2.2
        raise Fault(Reason.EK_CERTIFICATE_MALFORMED, "its serial number is not positive", field=path)
    return certificate


def check_same_key(certificate: x509.Certificate, ek: Public, path: str) -> None:
    """Refuse an EK that is not the certificate's. Raises `Fault(EK_MISMATCH | EK_CERTIFICATE_MALFORMED)`."""
    try:
        key = _oaep_key(certificate) or certificate.public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE:
        raise Fault(Reason.EK_CERTIFICATE_MALFORMED, "its public key does not parse", field=path) from None
    if spki != ek.spki:
        raise Fault(Reason.EK_MISMATCH, field=path)


def check_profile(certificate: x509.Certificate, path: str) -> Maker:
    """Hold the certificate to the profile, and say what it names. Raises `Fault(EK_CERTIFICATE_EXTENSION |
    EK_CERTIFICATE_PROFILE)`."""
    extensions = certificate.extensions
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise Fault(Reason.EK_CERTIFICATE_EXTENSION, f"extension {extension.oid.dotted_string}", field=path)
    if certificate.version is not x509.Version.v3:
        raise _profile("not of version 3", path)
    _check_usages(extensions, path)
    return _maker(certificate, path)


def classify(
    certificate: x509.Certificate, chain: tuple[x509.Certificate, ...], trust: MakerTrust, now: float, path: str
) -> AttestationClass:
    """The class of TPM, by the root that the certificate chains to through `chain` at `now`, in seconds since the Unix
    epoch. Raises `Fault(EK_CERTIFICATE_EXPIRED | EK_CHAIN_UNTRUSTED)`."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise Fault(Reason.EK_CERTIFICATE_EXPIRED, field=path)
    # Virtual first: where a path to both exists, the weaker claim is the true one.
    not_virtual = _objection(certificate, chain, trust.virtual, at)
    if not not_virtual:
        return AttestationClass.VIRTUAL
    not_hardware = _objection(certificate, chain, trust.hardware, at)
    if not not_hardware:
        return AttestationClass.HARDWARE
    internal = f"virtual: {not_virtual}; hardware: {not_hardware}"
    raise Fault(Reason.EK_CHAIN_UNTRUSTED, field=path, internal=internal)


def verified_path(
    certificate: x509.Certificate, chain: tuple[x509.Certificate, ...], roots: tuple[x509.Certificate, ...], now: float
) -> tuple[x509.Certificate, ...]:
    """The certificates from an EK's to one of `roots` at `now`, in seconds since the Unix epoch; empty for an EK's that
    has to be followed in another way (see `_oaep_key`)."""
    if not roots or _oaep_key(certificate) is not None:
        return ()
    return tuple(_path(certificate, chain, roots, datetime.datetime.fromtimestamp(now, datetime.UTC)))


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate, now: float) -> bool:
    """Whether `issuer`, believed to be an authority, issued this EK's certificate, and both are valid at `now`."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return _oaep_key(certificate) is None and not _path_objection(certificate, (), (issuer,), at)


def _check_usages(extensions: x509.Extensions, path: str) -> None:
    """Profile §3.2.10 to §3.2.12: not an authority, a key to encrypt to, and if usages are named, an EK's."""
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is None or constraints.ca:
        raise _profile("basicConstraints is missing or names an authority", path)
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not (usage.key_encipherment or usage.key_agreement) or usage.key_cert_sign:
        raise _profile("keyUsage is missing or not that of an encryption key", path)
    usages = _find(extensions, x509.ExtendedKeyUsage)
    if usages is not None and EK_CERTIFICATE_USAGE not in usages:
        raise _profile("extendedKeyUsage is not that of an EK certificate", path)


def _maker(certificate: x509.Certificate, path: str) -> Maker:
    """Profile §3.2.9: a directoryName holds maker, model and version; with an empty subject, in a critical extension
    (RFC 5280 §4.1.2.6)."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise _profile("subjectAltName is missing", path) from None
    if not certificate.subject.rdns and not san.critical:
        raise _profile("the subject is empty and subjectAltName not critical", path)
    attributes = [item for name in san.value.get_values_for_type(x509.DirectoryName) for item in name]
    return Maker(*(_only(attributes, oid, path) for oid in (TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION)))


def _only(attributes: list[x509.NameAttribute[str | bytes]], oid: x509.ObjectIdentifier, path: str) -> str:
    values = [item.value for item in attributes if item.oid == oid]
    if len(values) != 1 or not isinstance(values[0], str):
        raise _profile(f"subjectAltName does not hold {oid.dotted_string} once", path)
    if not (0 < len(values[0]) <= _MAX_NAME_CHARACTERS and values[0].isascii() and values[0].isprintable()):
        raise _profile(f"the value of {oid.dotted_string} is not short printable ASCII", path)
    return values[0]


def _objection(
    certificate: x509.Certificate,
    chain: tuple[x509.Certificate, ...],
    roots: tuple[x509.Certificate, ...],
    at: datetime.datetime,
) -> str:
    """Why the certificate does not chain to one of `roots`; empty when it does."""
    if not roots:
        return "no root is pinned"
    if _oaep_key(certificate) is None:
        return _path_objection(certificate, chain, roots, at)
    # cryptography's verifier knows no RSAES-OAEP keys: check the leaf's signature here, and let it verify the issuer.
    issuers = [issuer for issuer in (*roots, *chain) if _issued(certificate, issuer)]
    objections = [_path_objection(issuer, chain, roots, at) for issuer in issuers]
    return "" if "" in objections else "; ".join(objections) or "its issuer is not at hand"


def _path_objection(
    leaf: x509.Certificate,
    chain: tuple[x509.Certificate, ...],
    roots: tuple[x509.Certificate, ...],
    at: datetime.datetime,
) -> str:
    """Why there is no path (RFC 5280 §6); empty when there is one. The leaf's own extensions are `check_profile`'s
    matter: the Web's rules for end entities are not an EK's."""
    try:
        _path(leaf, chain, roots, at)
    except (verification.VerificationError, *UNREADABLE) as error:
        return str(error) or type(error).__name__
    return ""


def _path(
    leaf: x509.Certificate,
    chain: tuple[x509.Certificate, ...],
    roots: tuple[x509.Certificate, ...],
    at: datetime.datetime,
) -> list[x509.Certificate]:
    builder = verification.PolicyBuilder().store(verification.Store(list(roots))).time(at)
    builder = builder.max_chain_depth(MAX_CHAIN_DEPTH).extension_policies(ca_policy=_AUTHORITIES, ee_policy=_LEAVES)
    return builder.build_client_verifier().verify(leaf, list(chain)).chain


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    constraints, usage = _find(issuer.extensions, x509.BasicConstraints), _find(issuer.extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _oaep_key(certificate: x509.Certificate) -> rsa.RSAPublicKey | None:
    """The key of a certificate whose SubjectPublicKeyInfo says RSAES-OAEP (RFC 4055 §4), as early TPMs' do."""
    to_be_signed = children(certificate.tbs_certificate_bytes)
    algorithm, bits = children(to_be_signed[6 if certificate.version is x509.Version.v3 else 5])
    if children(algorithm)[0] != _RSAES_OAEP:
        return None
    key = load_der_public_key(content(bits)[1:])  # RSAPublicKey, behind the octet that counts unused bits
    return key if isinstance(key, rsa.RSAPublicKey) else None


def _find(extensions: x509.Extensions, kind: type[_E]) -> _E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _profile(detail: str, path: str) -> Fault:
    return Fault(Reason.EK_CERTIFICATE_PROFILE, detail, field=path)

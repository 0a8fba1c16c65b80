"""The last look at a certificate before it is signed: RFC 5280's rules and the profile's, read from the finished bytes.

It shares with `pki.profile` the table of profiles and the terms, and none of the code that builds: a slip there shows
here. A finding is a sentence; `check` raises with all of them.
"""

from __future__ import annotations

import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID, NameOID

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.attestation import ATTESTATION_OID, CertifiedAttestation, certified_attestation
from pki.profile import BACKDATED_SECONDS, Issuer, Terms

# Extension → must it be critical (RFC 5280 §4.2.1, and X509-SVID §4 for the usages).
_CRITICAL = {
    ExtensionOID.BASIC_CONSTRAINTS: True,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.EXTENDED_KEY_USAGE: False,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: False,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ATTESTATION_OID: False,
}
_NO_USAGE_BUT_SIGNING = (True, False, False, False, False, False, False)


def check(certificate: x509.Certificate, terms: Terms, issuer: Issuer) -> None:
    """Raises `Fault(LINT_FAILED)` with every finding when `certificate` is not what `terms` call for."""
    findings = lint(certificate, terms, issuer)
    if findings:
        raise Fault(Reason.LINT_FAILED, internal="; ".join(findings))


def lint(certificate: x509.Certificate, terms: Terms, issuer: Issuer) -> list[str]:
    """What is wrong with `certificate`; nothing when it is right."""
    try:
        return [
            text
            for text, holds in (
                *_fields(certificate, terms, issuer),
                *_validity(certificate, terms, issuer),
                *_extensions(certificate, terms, issuer),
            )
            if not holds
        ]
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, Fault) as error:
        return [f"cannot be read: {type(error).__name__}"]


_Rule = tuple[str, bool]


def _fields(certificate: x509.Certificate, terms: Terms, issuer: Issuer) -> list[_Rule]:
    serial = certificate.serial_number
    common_name = [x509.NameAttribute(NameOID.COMMON_NAME, terms.identity.name)]
    return [
        ("the version is not 3 (§4.1.2.1)", certificate.version is x509.Version.v3),
        ("the serial is not the reserved one", serial == terms.serial),
        ("the serial is not positive within 20 octets (§4.1.2.2)", 0 < serial < 1 << 159),
        ("the serial has less than 64 bits", serial.bit_length() >= 64),
        ("the issuer is not the CA's subject (§4.1.2.4)", certificate.issuer == issuer.name),
        ("the subject is not the identity's name alone", list(certificate.subject) == common_name),
        ("the key is not the requested one", _spki(certificate) == terms.spki),
    ]


def _validity(certificate: x509.Certificate, terms: Terms, issuer: Issuer) -> list[_Rule]:
    begins = int(certificate.not_valid_before_utc.timestamp())
    ends = int(certificate.not_valid_after_utc.timestamp())
    longest = terms.profile.longest + BACKDATED_SECONDS
    return [
        ("it ends before it begins", begins < ends),
        ("it is not valid now", begins <= terms.now < ends),
        ("it lives longer than the profile allows", ends - begins <= longest),
        ("it is valid outside its issuer's validity", issuer.not_before <= begins and ends <= issuer.not_after),
    ]


def _extensions(certificate: x509.Certificate, terms: Terms, issuer: Issuer) -> list[_Rule]:
    found = certificate.extensions
    criticality = {extension.oid: extension.critical for extension in found}
    constraints = found.get_extension_for_class(x509.BasicConstraints).value
    usages = list(found.get_extension_for_class(x509.ExtendedKeyUsage).value)
    authority = found.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = found.get_extension_for_class(x509.SubjectKeyIdentifier).value
    attestation = CertifiedAttestation(terms.attestation, terms.attested_until)
    return [
        ("extensions or their criticality are not the profile's (§4.2)", criticality == _CRITICAL),
        ("it is a CA (§4.2.1.9)", constraints.ca is False and constraints.path_length is None),
        ("the key usage is not digitalSignature alone (§4.2.1.3)", _usage(found) == _NO_USAGE_BUT_SIGNING),
        ("the extended key usage is not the profile's (§4.2.1.12)", usages == list(terms.profile.speaks)),
        ("the authority key identifier is not the issuer's", authority.key_identifier == issuer.key_identifier),
        ("the subject key identifier has not 160 bits", len(subject.digest) == 20),
        ("the attestation is not the recorded one", certified_attestation(certificate) == attestation),
        *_names(found.get_extension_for_class(x509.SubjectAlternativeName).value, terms),
    ]


def _names(names: x509.SubjectAlternativeName, terms: Terms) -> list[_Rule]:
    dns = names.get_values_for_type(x509.DNSName)
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    asked = [str(ipaddress.ip_address(name)) if ":" in name else name for name in terms.names]
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return [
        ("the SPIFFE ID is not the only URI (X509-SVID §2)", uris == [str(terms.identity)]),
        ("DNS names and addresses are not the decided ones", sorted(dns + addresses) == sorted(asked)),
        ("there are names of another type", len(list(names)) == len(uris) + len(dns) + len(addresses)),
        ("there are names that the profile forbids", terms.profile.named or not asked),
    ]


def _usage(found: x509.Extensions) -> tuple[bool, ...]:
    usage = found.get_extension_for_class(x509.KeyUsage).value
    return (
        usage.digital_signature,
        usage.content_commitment,
        usage.key_encipherment,
        usage.data_encipherment,
        usage.key_agreement,
        usage.key_cert_sign,
        usage.crl_sign,
    )


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )

"""Attack: critical extensions (golang/go#47618).

The TCG profile asks for an EK certificate with an empty subject and a critical subjectAltName holding a directoryName:
that is legal. Any other unknown critical extension says something that must be understood and is not: refused.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from pki.tpm.endorsement import MakerTrust
from pki.tpm.verdict import identify
from tests.support.authorities import authority, named
from tests.support.soft_tpm import NOW, SoftTpm

MAKER = TpmMaker.create()
TRUST = MakerTrust(hardware=(MAKER.root,))
POLICIES = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.23.133.11.1.1"), None)])
CONSTRAINTS = x509.NameConstraints([x509.DNSName("example")], None)


def test_a_critical_directory_name_is_accepted() -> None:
    tpm = SoftTpm(MAKER)
    certificate = MAKER.certify_ek(tpm.ek.public_key())
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert not certificate.subject.rdns
    assert identify(tpm.begin(), TRUST, NOW).maker == MAKER.manufacturer


@pytest.mark.parametrize(
    "extension",
    [
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.9"), b"\x30\x00"),  # subjectDirectoryAttributes
        CONSTRAINTS,
        x509.OCSPNoCheck(),
    ],
)
def test_any_other_is_refused_when_critical_and_ignored_when_not(extension: x509.ExtensionType) -> None:
    tpm = SoftTpm(MAKER)
    builder = MAKER.ek_builder(tpm.ek.public_key())
    critical = MAKER.sign(builder.add_extension(extension, critical=True))
    with pytest.raises(Fault) as caught:
        identify(tpm.begin(ek_certificate=_der(critical)), TRUST, NOW)
    assert caught.value.reason is Reason.EK_CERTIFICATE_EXTENSION
    assert extension.oid.dotted_string in caught.value.detail
    optional = MAKER.sign(builder.add_extension(extension, critical=False))
    identify(tpm.begin(ek_certificate=_der(optional)), TRUST, NOW)


def test_critical_certificate_policies_are_accepted_for_every_policy_is() -> None:
    """As Infineon's, Intel's and STMicroelectronics' certificates have them (RFC 5280 §6.1.1: any-policy)."""
    assert _identify_below(POLICIES) is AttestationClass.HARDWARE


def test_an_unknown_critical_extension_of_an_authority_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        _identify_below(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"))
    assert caught.value.reason is Reason.EK_CHAIN_UNTRUSTED
    assert "critical" in caught.value.internal


def _identify_below(extension: x509.ExtensionType) -> AttestationClass:
    """An EK certificate by an authority that carries `extension`, critical."""
    root_key, key, tpm = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
        SoftTpm(MAKER),
    )
    root = authority(named("Root"), root_key.public_key(), named("Root"), root_key)
    intermediate = authority(named("Intermediate"), key.public_key(), root.subject, root_key, extension)
    maker = replace(MAKER, intermediate=intermediate, intermediate_key=key)
    builder = maker.ek_builder(tpm.ek.public_key())
    leaf = maker.sign(builder.add_extension(POLICIES, critical=True))
    begin = tpm.begin(ek_certificate=_der(leaf), ek_chain=(_der(intermediate),))
    return identify(begin, MakerTrust(hardware=(root,)), NOW).attestation


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)

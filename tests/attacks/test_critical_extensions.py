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
from foundation.reasons import Reason
from pki.tpm.endorsement import MakerTrust
from pki.tpm.verdict import identify
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
        POLICIES,
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


def test_an_unknown_critical_extension_of_an_authority_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    tpm = SoftTpm(MAKER)
    rogue = _authority(key, unknown)
    maker = replace(MAKER, intermediate=rogue, intermediate_key=key)
    begin = tpm.begin(ek_certificate=_der(maker.certify_ek(tpm.ek.public_key())), ek_chain=(_der(rogue), *MAKER.chain))
    with pytest.raises(Fault) as caught:
        identify(begin, TRUST, NOW)
    assert caught.value.reason is Reason.EK_CHAIN_UNTRUSTED


def _authority(key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> x509.Certificate:
    model = MAKER.intermediate
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Another Intermediate")])
    builder = x509.CertificateBuilder(
        issuer_name=model.subject,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=model.not_valid_before_utc,
        not_valid_after=model.not_valid_after_utc,
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return MAKER.sign(builder.add_extension(extension, critical=True))


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)

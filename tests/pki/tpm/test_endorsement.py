"""EK certificates: strict DER, the TCG profile, a path to pinned roots; real ones of swtpm_setup among them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.tpm import Tpm
from deploy.demo.emulated_tpm import set_up_by_swtpm
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin
from pki.tpm.endorsement import MakerTrust, check_profile, check_same_key, classify, load_certificate
from pki.tpm.public import Public
from pki.tpm.templates import check_template
from pki.tpm.verdict import identify
from tests.support import soft_tpm
from tests.support.recorded import Recording, recording, recordings  # noqa: F401  # fixtures
from tests.support.soft_tpm import NOW, SoftTpm
from tests.support.swtpm import maker  # noqa: F401  # fixture

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
RSA_KEY = rsa.generate_private_key(65537, 2048)
OAEP = bytes.fromhex("06092a864886f70d010107")
RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d010101")


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def refused(reason: Reason, act: Callable[[], object]) -> Fault:
    with pytest.raises(Fault) as caught:
        act()
    assert caught.value.reason is reason, caught.value
    return caught.value


def oaep_certificate(maker: TpmMaker) -> bytes:  # noqa: F811
    """An EK certificate whose key is said to be for RSAES-OAEP, as early TPMs have it."""
    honest = maker.certify_ek(RSA_KEY.public_key())
    body = honest.tbs_certificate_bytes.replace(RSA_ENCRYPTION, OAEP)
    signature = maker.intermediate_key.sign(body, ec.ECDSA(hashes.SHA256()))
    bits = b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    content = body + algorithm + bits
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


class TestProfile:
    def test_an_honest_certificate_names_its_maker(self, maker: TpmMaker) -> None:  # noqa: F811
        found = check_profile(maker.certify_ek(KEY), "c")
        assert (found.maker, found.model, found.version) == (maker.manufacturer, maker.model, maker.version)

    @pytest.mark.parametrize(
        ("dropped", "added"),
        [
            (x509.SubjectAlternativeName, None),
            (x509.BasicConstraints, None),
            (x509.BasicConstraints, (x509.BasicConstraints(ca=True, path_length=None), True)),
            (x509.KeyUsage, None),
            (x509.ExtendedKeyUsage, (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), False)),
            (x509.SubjectAlternativeName, (x509.SubjectAlternativeName([x509.DNSName("tpm.example")]), True)),
        ],
    )
    def test_what_breaks_it_is_refused(
        self,
        maker: TpmMaker,  # noqa: F811
        dropped: type[x509.ExtensionType],
        added: tuple[x509.ExtensionType, bool] | None,
    ) -> None:
        certificate = _without(maker, dropped, added)
        refused(Reason.EK_CERTIFICATE_PROFILE, lambda: check_profile(certificate, "c"))

    def test_without_usages_it_passes(self, maker: TpmMaker) -> None:  # noqa: F811
        check_profile(_without(maker, x509.ExtendedKeyUsage, None), "c")

    def test_an_empty_subject_asks_for_a_critical_name(self, maker: TpmMaker) -> None:  # noqa: F811
        certificate = _without(maker, x509.SubjectAlternativeName, (maker.device_name(), False))
        refused(Reason.EK_CERTIFICATE_PROFILE, lambda: check_profile(certificate, "c"))

    @pytest.mark.parametrize("value", ["", "id:\u00e9", "x" * 65, "a\nb"])
    def test_odd_names_are_refused(self, maker: TpmMaker, value: str) -> None:  # noqa: F811
        bent = replace(maker, model=value or " \t")
        refused(Reason.EK_CERTIFICATE_PROFILE, lambda: check_profile(bent.certify_ek(KEY), "c"))


class TestKey:
    def test_an_ek_is_that_of_its_certificate(self, recording: Recording) -> None:  # noqa: F811
        certificate = load_certificate(recording.begin.ek_certificate, "c")
        check_same_key(certificate, Public.parse(recording.begin.ek_public, "ek"), "ek")
        other = Public.parse(recording.begin.ak_public, "ek")
        refused(Reason.EK_MISMATCH, lambda: check_same_key(certificate, other, "ek"))

    def test_a_template_is_matched_exactly(self, recording: Recording) -> None:  # noqa: F811
        ek = Public.parse(recording.begin.ek_public, "ek")
        template = check_template(ek, "ek")
        assert template.matches(ek)
        for bit in (1, 4, 5, 6, 7, 10, 16, 17, 18):
            bent = replace(ek, attributes=ek.attributes ^ 1 << bit)
            refused(Reason.EK_TEMPLATE_REFUSED, lambda bent=bent: check_template(bent, "ek"))
        for bent in (replace(ek, auth_policy=bytes(32)), replace(ek, aes_bits=0)):
            refused(Reason.EK_TEMPLATE_REFUSED, lambda bent=bent: check_template(bent, "ek"))

    def test_an_ek_with_another_exponent_is_refused(self) -> None:
        options = {"policy": soft_tpm.POLICY_A, "aes": 128, "scheme": soft_tpm.NULL, "exponent": 3}
        area = soft_tpm.public_area(RSA_KEY.public_key(), soft_tpm.EK_LOW, **options)  # type: ignore[arg-type]
        refused(Reason.EK_TEMPLATE_REFUSED, lambda: check_template(Public.parse(area, "ek"), "ek"))

    def test_a_certificate_of_an_oaep_key_is_read(self, maker: TpmMaker) -> None:  # noqa: F811
        raw, tpm = oaep_certificate(maker), SoftTpm(maker, ek=RSA_KEY)
        begin = tpm.begin(ek_certificate=raw)
        found = identify(begin, MakerTrust(hardware=(maker.root,)), NOW)
        assert found.attestation is AttestationClass.HARDWARE
        assert found.ek_sha256 == identify(tpm.begin(), MakerTrust(hardware=(maker.root,)), NOW).ek_sha256

    def test_a_forged_certificate_of_an_oaep_key_is_refused(self, maker: TpmMaker) -> None:  # noqa: F811
        raw, tpm = oaep_certificate(maker), SoftTpm(maker, ek=RSA_KEY)
        bent = raw.replace(b"sallyport-emulated", b"sallyport-hardware")
        trust, stranger = MakerTrust(hardware=(maker.root,)), MakerTrust(hardware=(TpmMaker.create().root,))
        refused(Reason.EK_CHAIN_UNTRUSTED, lambda: identify(tpm.begin(ek_certificate=bent), trust, NOW))
        refused(Reason.EK_CHAIN_UNTRUSTED, lambda: identify(tpm.begin(ek_certificate=raw), stranger, NOW))
        # Nor may an end entity vouch for it: here another EK's certificate, by the same maker.
        other = ec.generate_private_key(ec.SECP256R1())
        rogue = replace(maker, intermediate=maker.certify_ek(other.public_key()), intermediate_key=other)
        begin = tpm.begin(ek_certificate=oaep_certificate(rogue), ek_chain=(*rogue.chain, *maker.chain))
        refused(Reason.EK_CHAIN_UNTRUSTED, lambda: identify(begin, trust, NOW))


class TestPath:
    def test_the_root_gives_the_class(self, maker: TpmMaker) -> None:  # noqa: F811
        certificate, chain = maker.certify_ek(KEY), (maker.intermediate,)
        for trust, found in (
            (MakerTrust(hardware=(maker.root,)), AttestationClass.HARDWARE),
            (MakerTrust(virtual=(maker.root,)), AttestationClass.VIRTUAL),
            (MakerTrust((TpmMaker.create().root,), (maker.root,)), AttestationClass.VIRTUAL),
        ):
            assert classify(certificate, chain, trust, NOW, "c") is found

    def test_without_a_pinned_root_it_is_refused(self, maker: TpmMaker) -> None:  # noqa: F811
        certificate, chain = maker.certify_ek(KEY), (maker.intermediate,)
        for trust, given_chain in (
            (MakerTrust(), chain),
            (MakerTrust(hardware=(TpmMaker.create().root,)), chain),
            (MakerTrust(hardware=(maker.root,)), ()),
            (MakerTrust(hardware=(TpmMaker.create().root,)), (maker.intermediate, maker.root)),
        ):
            refused(Reason.EK_CHAIN_UNTRUSTED, lambda t=trust, g=given_chain: classify(certificate, g, t, NOW, "c"))

    def test_one_root_is_not_of_both_classes(self, maker: TpmMaker) -> None:  # noqa: F811
        refused(Reason.SETTING_INVALID, lambda: MakerTrust((maker.root,), (maker.root,)))

    def test_validity_is_judged_at_the_given_time(self, maker: TpmMaker) -> None:  # noqa: F811
        start, end = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2025, 2030))
        certificate = maker.sign(maker.ek_builder(KEY, not_before=start, not_after=end))
        trust, chain = MakerTrust(hardware=(maker.root,)), (maker.intermediate,)
        for at in (start, end):
            classify(certificate, chain, trust, at.timestamp(), "c")
        for at in (start.timestamp() - 1, end.timestamp() + 1):
            refused(Reason.EK_CERTIFICATE_EXPIRED, lambda at=at: classify(certificate, chain, trust, at, "c"))

    def test_an_end_entity_is_no_issuer(self, maker: TpmMaker) -> None:  # noqa: F811
        other = ec.generate_private_key(ec.SECP256R1())
        rogue = replace(maker, intermediate=maker.certify_ek(other.public_key()), intermediate_key=other)
        trust, chain = MakerTrust(hardware=(maker.root,)), (rogue.intermediate, maker.intermediate)
        certificate = rogue.certify_ek(KEY)
        refused(Reason.EK_CHAIN_UNTRUSTED, lambda: classify(certificate, chain, trust, NOW, "c"))


def test_certificates_of_swtpm_setup_are_accepted(tmp_path: Path) -> None:
    device, (root, issuer) = set_up_by_swtpm(tmp_path / "device")
    chain = (der(x509.load_pem_x509_certificate(issuer)),)
    trust = MakerTrust(virtual=(x509.load_pem_x509_certificate(root),))
    with device, Tpm(device.tcti) as tpm:
        ak, tls = tpm.attestation_key(), tpm.create_tls_key().public
        for template, name in (("EK-HIGH-ECC384", "H-3"), ("EK-RSA2048", "L-1")):
            ek = tpm.endorsement_key(template)
            begin = Begin("enrol", "tpm", "node-1", "", ek.certificate, chain, ek.public, ak, tls)
            # Made a moment ago by swtpm's clock, so judged far from it.
            found = identify(begin, trust, datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC).timestamp())
            assert (found.template, found.attestation, found.model) == (name, AttestationClass.VIRTUAL, "swtpm")


STRANGER = TpmMaker.create()
SAMPLE = der(STRANGER.certify_ek(KEY))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutations_are_faults_or_load(data: st.DataObject) -> None:
    bent = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        bent[data.draw(st.integers(0, len(SAMPLE) - 1))] = data.draw(st.integers(0, 255))
    with pytest.raises(Fault):  # the last step refuses what all others let through: it is not pinned
        _judge_certificate(bytes(bent))


def _judge_certificate(raw: bytes) -> None:
    certificate = load_certificate(raw, "c")
    check_same_key(certificate, Public.parse(soft_tpm.public_area(KEY, soft_tpm.EK_LOW), "ek"), "ek")
    check_profile(certificate, "c")
    classify(certificate, (certificate,), MakerTrust(hardware=(_OTHER.root,)), NOW, "c")


_OTHER = TpmMaker.create()


def _without(
    maker: TpmMaker,  # noqa: F811
    dropped: type[x509.ExtensionType],
    added: tuple[x509.ExtensionType, bool] | None,
) -> x509.Certificate:
    honest = maker.certify_ek(KEY)
    builder = x509.CertificateBuilder(
        issuer_name=honest.issuer,
        subject_name=honest.subject,
        public_key=KEY,
        serial_number=honest.serial_number,
        not_valid_before=honest.not_valid_before_utc,
        not_valid_after=honest.not_valid_after_utc,
    )
    for extension in honest.extensions:
        if not isinstance(extension.value, dropped):
            builder = builder.add_extension(extension.value, extension.critical)
    if added:
        builder = builder.add_extension(*added)
    return maker.sign(builder)

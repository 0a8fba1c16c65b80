"""The numbered steps, each with its own refusal; and the whole against a real emulator."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.demo.measured_boot import event_log, healthy_boot
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from pki.tpm.attest import Counters
from pki.tpm.endorsement import MakerTrust
from pki.tpm.reference import PcrReference, ReferenceValues
from pki.tpm.verdict import Attested, EnrolledKeys, Expected, identify, verify
from tests.support.recorded import Recording, recording, recordings  # noqa: F401  # fixtures
from tests.support.soft_tpm import (
    NOW,
    OWNER,
    PCRS,
    SHA256,
    SHA384,
    SoftTpm,
    asked,
    name_of,
    public_area,
    request,
    selection,
    signature,
)
from tests.support.swtpm import maker  # noqa: F401  # fixture


@pytest.fixture(name="tpm")
def tpm(maker: TpmMaker) -> SoftTpm:  # noqa: F811
    return SoftTpm(maker)


def judge(tpm: SoftTpm, expected: Expected | None = None, **changes: Any) -> Attested:
    expected = expected or asked()
    keys = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    return verify(keys, tpm.evidence(expected, **changes), expected, None, reference_required=False)


def refused(reason: Reason, *arguments: Any, **changes: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        judge(*arguments, **changes)
    assert caught.value.reason is reason, caught.value
    return caught.value


class TestEmulator:
    def test_an_honest_node_is_identified(self, recording: Recording) -> None:  # noqa: F811
        trust = MakerTrust(virtual=(recording.maker.root,))
        found = identify(recording.begin, trust, NOW)
        assert found.attestation is AttestationClass.VIRTUAL
        assert (found.maker, found.model, found.version) == (
            recording.maker.manufacturer,
            recording.maker.model,
            recording.maker.version,
        )
        assert found.template == {"EK-ECC256": "L-2", "EK-RSA2048": "L-1", "EK-HIGH-ECC384": "H-3"}[recording.template]
        assert found.ek_sha256 == hashlib.sha256(found.ek.spki).digest()

    def test_its_evidence_is_accepted(self, recording: Recording) -> None:  # noqa: F811
        keys = EnrolledKeys.parse(recording.begin.ak_public, recording.begin.tls_public)
        found = verify(keys, recording.evidence, recording.expected, None, reference_required=False)
        assert found.explained == frozenset(range(8))
        assert found.tls_spki == keys.tls_spki
        assert found.firmware_version > 0

    def test_reference_values_of_its_boot_accept_it(self, recording: Recording) -> None:  # noqa: F811
        keys = EnrolledKeys.parse(recording.begin.ak_public, recording.begin.tls_public)
        digests = frozenset(event.digest("sha256") for event in healthy_boot())
        by_events = ReferenceValues("sha256", {n: PcrReference(events=digests) for n in range(8)})
        by_value = ReferenceValues("sha256", {0: PcrReference(frozenset({recording.evidence.pcr_values[0]}))})
        for reference in (by_events, by_value):
            verify(keys, recording.evidence, recording.expected, reference, reference_required=True)

    def test_every_flipped_octet_of_signed_evidence_is_refused(self, recordings: dict[str, Recording]) -> None:  # noqa: F811
        found = recordings["EK-ECC256"]
        keys = EnrolledKeys.parse(found.begin.ak_public, found.begin.tls_public)
        for name in ("certify_attest", "certify_signature", "quote_attest", "quote_signature"):
            raw = getattr(found.evidence, name)
            for i in range(len(raw)):
                bent = raw[:i] + bytes([raw[i] ^ 0x01]) + raw[i + 1 :]
                with pytest.raises(Fault):
                    verify(
                        keys, replace(found.evidence, **{name: bent}), found.expected, None, reference_required=False
                    )


class TestIdentify:
    def test_a_software_twin_of_an_honest_tpm_is_identified(self, tpm: SoftTpm) -> None:
        found = identify(tpm.begin(), MakerTrust(hardware=(tpm.maker.root,)), NOW)
        assert found.attestation is AttestationClass.HARDWARE
        assert found.keys.tls_spki == tpm.tls.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"ek_certificate": b""}, Reason.EK_CERTIFICATE_MISSING),
            ({"ek_public": b""}, Reason.TPM_STRUCTURE_MALFORMED),
            ({"ak_public": b"\x00\x23"}, Reason.TPM_STRUCTURE_MALFORMED),
            ({"tls_public": b"\x00\x25\x00\x0b"}, Reason.TPM_ALGORITHM_REFUSED),
            ({"ek_certificate": b"\x30\x00"}, Reason.EK_CERTIFICATE_MALFORMED),
            ({"ek_chain": ()}, Reason.EK_CHAIN_UNTRUSTED),
        ],
    )
    def test_each_step_refuses(self, tpm: SoftTpm, changes: dict[str, Any], reason: Reason) -> None:
        with pytest.raises(Fault) as caught:
            identify(tpm.begin(**changes), MakerTrust(hardware=(tpm.maker.root,)), NOW)
        assert caught.value.reason is reason
        assert caught.value.field.startswith("begin.")

    def test_another_ek_than_the_certificates_is_refused(self, tpm: SoftTpm) -> None:
        with pytest.raises(Fault) as caught:
            identify(tpm.begin(ek_public=SoftTpm(tpm.maker).ek_area), MakerTrust(hardware=(tpm.maker.root,)), NOW)
        assert caught.value.reason is Reason.EK_MISMATCH

    def test_the_hash_of_the_ek_does_not_depend_on_its_certificate(self, tpm: SoftTpm) -> None:
        trust = MakerTrust(hardware=(tpm.maker.root,))
        first, second = (identify(tpm.begin(), trust, NOW) for _ in range(2))
        assert first.ek_sha256 == second.ek_sha256


class TestSteps:
    def test_honest_evidence_is_accepted(self, tpm: SoftTpm) -> None:
        found = judge(tpm)
        assert found.counters == Counters(7, 0, 100_000, True)
        assert found.pcr_values == dict(zip(PCRS.indices, tpm.values(PCRS), strict=True))

    def test_an_rsa_ak_signs_by_its_own_scheme(self, maker: TpmMaker) -> None:  # noqa: F811
        judge(SoftTpm(maker, ak=rsa.generate_private_key(65537, 2048)))

    def test_another_scheme_than_the_aks_is_refused(self, maker: TpmMaker) -> None:  # noqa: F811
        tpm, expected = SoftTpm(maker, ak=rsa.generate_private_key(65537, 2048)), asked()
        signed = signature(tpm.ak, tpm.quote(expected.qualifying("quote")), 0x16)
        refused(Reason.ATTEST_SIGNATURE, tpm, quote_signature=signed)

    def test_another_keys_signature_is_refused(self, tpm: SoftTpm) -> None:
        expected = asked()
        signed = signature(tpm.tls, tpm.certify(expected.qualifying("certify")))
        refused(Reason.ATTEST_SIGNATURE, tpm, certify_signature=signed)

    @pytest.mark.parametrize(
        "changes",
        [
            {"purpose": "renew"},
            {"session": b"t" * 16},
            {"nonce": b"m" * 32},
            {"first_message": b"[]"},
            {"server_spki_sha256": b"l" * 32},
        ],
    )
    def test_evidence_of_another_exchange_is_refused(self, tpm: SoftTpm, changes: dict[str, Any]) -> None:
        other = asked(**changes)
        refused(Reason.ATTEST_NONCE, tpm, certify_attest=tpm.certify(other.qualifying("certify")))
        refused(Reason.ATTEST_NONCE, tpm, quote_attest=tpm.quote(other.qualifying("quote")))

    def test_certify_and_quote_do_not_share_their_nonce(self, tpm: SoftTpm) -> None:
        refused(Reason.ATTEST_NONCE, tpm, quote_attest=tpm.quote(asked().qualifying("certify")))

    def test_the_name_of_another_key_is_refused(self, tpm: SoftTpm) -> None:
        name = name_of(SoftTpm(tpm.maker).tls_area)
        fault = refused(Reason.ATTEST_NAME, tpm, certify_attest=tpm.certify(asked().qualifying("certify"), name=name))
        assert fault.field == "evidence.certify.attest"

    def test_the_name_by_another_hash_is_refused(self, tpm: SoftTpm) -> None:
        name = name_of(public_area(tpm.tls.public_key(), tpm.tls_attributes, name_hash=SHA384))
        refused(Reason.ATTEST_NAME, tpm, certify_attest=tpm.certify(asked().qualifying("certify"), name=name))

    def test_an_ak_of_the_owner_hierarchy_is_refused(self, tpm: SoftTpm) -> None:
        tpm.hierarchy = OWNER
        assert "owner" in refused(Reason.AK_HIERARCHY, tpm).detail

    def test_another_signer_is_refused(self, tpm: SoftTpm) -> None:
        other = tpm.quote(asked().qualifying("quote"), signer=b"\x00\x0b" + bytes(32))
        refused(Reason.ATTEST_SIGNER, tpm, quote_attest=other)

    def test_values_that_were_not_quoted_are_refused(self, tpm: SoftTpm) -> None:
        values = tpm.values(PCRS)
        refused(Reason.QUOTE_DIGEST, tpm, pcr_values=(bytes(32), *values[1:]))
        refused(Reason.QUOTE_DIGEST, tpm, pcr_values=values[:-1])
        # The digest is over the concatenation: cutting it elsewhere must not pass either.
        joined = b"".join(values)
        refused(Reason.QUOTE_DIGEST, tpm, pcr_values=(joined[:31], joined[31:64], *values[2:]))

    def test_a_reset_between_certify_and_quote_is_refused(self, tpm: SoftTpm) -> None:
        for clock in ((100_001, 8, 0, 1), (100_001, 7, 1, 1)):
            later = tpm.quote(asked().qualifying("quote"), clock=clock)
            refused(Reason.QUOTE_COUNTERS, tpm, quote_attest=later)

    def test_a_request_for_another_key_is_refused(self, tpm: SoftTpm) -> None:
        other = ec.generate_private_key(ec.SECP256R1())
        refused(Reason.CSR_KEY_MISMATCH, tpm, csr=request(other))
        refused(Reason.CSR_MALFORMED, tpm, csr=request(tpm.tls, signer=other))
        refused(Reason.CSR_MALFORMED, tpm, csr=request(tpm.tls) + b"\x00")

    def test_pcrs_above_the_firmwares_need_no_log(self, tpm: SoftTpm) -> None:
        pcrs = PcrSelection("sha256", (0, 10))
        expected, ima = asked(pcrs=pcrs), hashlib.sha256(b"extended by the kernel").digest()
        values = (tpm.values(pcrs)[0], ima)
        quote = tpm.quote(expected.qualifying("quote"), selection=selection((SHA256, (0, 10))), values=values)
        found = judge(tpm, expected, quote_attest=quote, pcr_values=values)
        assert found.explained == {0}

    def test_a_log_of_another_boot_is_refused(self, tpm: SoftTpm) -> None:
        other = event_log(healthy_boot(firmware="another"), ("sha256",))
        assert "PCR 0" in refused(Reason.EVENT_LOG_MISMATCH, tpm, event_log=other).detail

    def test_a_log_without_the_quoted_bank_is_refused(self, tpm: SoftTpm) -> None:
        refused(Reason.EVENT_LOG_MISMATCH, tpm, event_log=event_log(tpm.events, ("sha1", "sha384")))


class TestReference:
    def judge(self, tpm: SoftTpm, reference: ReferenceValues | None, required: bool = True, **changes: Any) -> None:
        keys, expected = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area), asked()
        verify(keys, tpm.evidence(expected, **changes), expected, reference, reference_required=required)

    def refused(self, reason: Reason, *arguments: Any, **changes: Any) -> None:
        with pytest.raises(Fault) as caught:
            self.judge(*arguments, **changes)
        assert caught.value.reason is reason

    def test_missing_ones_are_refused_where_they_are_required(self, tpm: SoftTpm) -> None:
        self.refused(Reason.REFERENCE_MISSING, tpm, None)
        self.refused(Reason.REFERENCE_MISSING, tpm, ReferenceValues("sha256"))
        self.judge(tpm, None, required=False)

    def test_a_value_that_is_not_among_them_is_refused(self, tpm: SoftTpm) -> None:
        self.refused(
            Reason.REFERENCE_MISMATCH, tpm, ReferenceValues("sha256", {0: PcrReference(frozenset({bytes(32)}))})
        )

    def test_a_pcr_that_was_not_quoted_is_refused(self, tpm: SoftTpm) -> None:
        self.refused(
            Reason.REFERENCE_MISMATCH, tpm, ReferenceValues("sha256", {9: PcrReference(frozenset({bytes(32)}))})
        )

    def test_another_bank_is_refused(self, tpm: SoftTpm) -> None:
        self.refused(Reason.REFERENCE_MISMATCH, tpm, ReferenceValues("sha384", {0: PcrReference()}))

    def test_event_digests_need_a_log(self, tpm: SoftTpm) -> None:
        digests = frozenset(event.digest("sha256") for event in tpm.events)
        reference = ReferenceValues("sha256", {0: PcrReference(events=digests)})
        self.judge(tpm, reference)
        self.refused(Reason.REFERENCE_MISMATCH, tpm, reference, event_log=b"")

    def test_a_required_event_that_is_missing_is_refused(self, tpm: SoftTpm) -> None:
        digests = frozenset(event.digest("sha256") for event in tpm.events)
        reference = PcrReference(events=digests, required=frozenset({bytes(32)}))
        self.refused(Reason.REFERENCE_MISMATCH, tpm, ReferenceValues("sha256", {7: reference}))

"""Attack: EK certificates that are not strict DER; trailing bytes (keylime#1775).

A padded NV area, trailing bytes in every TPM structure, the name algorithm swapped: what two parsers could read in two
ways is refused, with a remedy.
"""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault, problem
from foundation.reasons import Reason
from pki.tpm.endorsement import MakerTrust
from pki.tpm.verdict import EnrolledKeys, identify, verify
from tests.support.soft_tpm import NOW, SHA384, SoftTpm, asked, name_of, public_area, signature

MAKER = TpmMaker.create()
TPM = SoftTpm(MAKER)
CERTIFICATE = MAKER.certify_ek(TPM.ek.public_key()).public_bytes(Encoding.DER)


def identify_with(**changes: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        identify(TPM.begin(**changes), MakerTrust(hardware=(MAKER.root,)), NOW)
    return caught.value


def verify_with(**changes: Any) -> Fault:
    expected, keys = asked(), EnrolledKeys.parse(TPM.ak_area, TPM.tls_area)
    with pytest.raises(Fault) as caught:
        verify(keys, TPM.evidence(expected, **changes), expected, None, reference_required=False)
    return caught.value


@pytest.mark.parametrize("padding", [b"\x00", b"\xff", b"\xff" * 300, b"\x00" * 1024, CERTIFICATE])
def test_a_padded_nv_area_is_refused_with_its_remedy(padding: bytes) -> None:
    fault = identify_with(ek_certificate=CERTIFICATE + padding)
    assert fault.reason is Reason.EK_CERTIFICATE_MALFORMED
    assert f"{len(padding)} octets are left over" in fault.detail
    assert "padding" in problem(fault)["remedy"]


def test_a_padded_chain_is_refused() -> None:
    fault = identify_with(ek_chain=(MAKER.chain[0] + b"\x00",))
    assert (fault.reason, fault.field) == (Reason.EK_CERTIFICATE_MALFORMED, "begin.ek_chain.0")


@pytest.mark.parametrize(
    "bent",
    [
        b"\x30\x83\x00" + CERTIFICATE[2:],  # a length with a leading zero
        b"\x30\x80" + CERTIFICATE[4:] + b"\x00\x00",  # indefinite, as BER allows
        CERTIFICATE.replace(b"\x01\x01\xff", b"\x01\x01\x01"),  # TRUE as BER allows it
        CERTIFICATE[:-1],
    ],
)
def test_ber_is_refused(bent: bytes) -> None:
    assert identify_with(ek_certificate=bent).reason is Reason.EK_CERTIFICATE_MALFORMED


@pytest.mark.parametrize("name", ["ek_public", "ak_public", "tls_public"])
def test_trailing_bytes_in_a_public_area_are_refused(name: str) -> None:
    fault = identify_with(**{name: getattr(TPM.begin(), name) + b"\x00"})
    assert (fault.reason, fault.field) == (Reason.TPM_TRAILING_BYTES, f"begin.{name}")


@pytest.mark.parametrize("name", ["certify", "quote"])
def test_trailing_bytes_in_evidence_are_refused(name: str) -> None:
    expected = asked()
    honest = TPM.evidence(expected)
    longer = getattr(honest, f"{name}_attest") + b"\x00"
    # Signed by the AK with its tail: only the parser can tell.
    changes = {f"{name}_attest": longer, f"{name}_signature": signature(TPM.ak, longer)}
    assert verify_with(**changes).reason is Reason.TPM_TRAILING_BYTES
    tail = getattr(honest, f"{name}_signature") + b"\x00"
    assert verify_with(**{f"{name}_signature": tail}).reason is Reason.TPM_TRAILING_BYTES


def test_trailing_bytes_in_the_request_are_refused() -> None:
    assert verify_with(csr=TPM.evidence(asked()).csr + b"\x00").reason is Reason.CSR_MALFORMED


def test_a_name_by_a_swapped_algorithm_is_refused() -> None:
    """The same key, the same attributes: with another nameAlg it is another object."""
    other = public_area(TPM.tls.public_key(), TPM.tls_attributes, name_hash=SHA384)
    honest = name_of(TPM.tls_area)
    for name in (name_of(other), b"\x00\x0c" + honest[2:], honest[2:], honest + b"\x00"):
        certify = TPM.certify(asked().qualifying("certify"), name=name)
        assert verify_with(certify_attest=certify).reason is Reason.ATTEST_NAME

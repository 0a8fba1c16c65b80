"""Attack: forged TPMS_ATTEST (CVE-2024-29038, CVE-2024-29040).

A structure whose magic is not TPM_GENERATED is signed (an unrestricted key, or a verifier that does not look); a quote
is sent as certify and the reverse. All are validly signed by the AK here.
"""

from __future__ import annotations

from typing import Any

import pytest

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.verdict import EnrolledKeys, verify
from tests.support.soft_tpm import CERTIFY, MAGIC, QUOTE, SoftTpm, asked, signature

MAKER = TpmMaker.create()


def judge(tpm: SoftTpm, **changes: Any) -> Reason:
    expected, keys = asked(), EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    with pytest.raises(Fault) as caught:
        verify(keys, tpm.evidence(expected, **changes), expected, None, reference_required=False)
    return caught.value.reason


@pytest.mark.parametrize("magic", [0, MAGIC ^ 1, 0x474354FF, 0xFFFFFFFF])
def test_a_structure_that_was_not_generated_in_a_tpm_is_refused(magic: int) -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    forged = tpm.certify(expected.qualifying("certify"), magic=magic)
    assert judge(tpm, certify_attest=forged) is Reason.ATTEST_MAGIC
    forged = tpm.quote(expected.qualifying("quote"), magic=magic)
    assert judge(tpm, quote_attest=forged) is Reason.ATTEST_MAGIC


def test_a_quote_is_no_certify_nor_the_reverse() -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    quote, certify = tpm.quote(expected.qualifying("certify")), tpm.certify(expected.qualifying("quote"))
    assert judge(tpm, certify_attest=quote) is Reason.ATTEST_TYPE
    assert judge(tpm, quote_attest=certify) is Reason.ATTEST_TYPE


@pytest.mark.parametrize("kind", [0x8014, 0x8015, 0x8016, 0x8019, 0x801A, 0x8000])
def test_no_other_type_is_taken_for_either(kind: int) -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    forged = tpm.certify(expected.qualifying("certify"), kind=kind)
    assert judge(tpm, certify_attest=forged) is Reason.ATTEST_TYPE
    forged = tpm.quote(expected.qualifying("quote"), kind=kind)
    assert judge(tpm, quote_attest=forged) is Reason.ATTEST_TYPE


def test_a_body_under_the_other_type_is_refused() -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    forged = tpm.quote(expected.qualifying("certify"), kind=CERTIFY)
    assert judge(tpm, certify_attest=forged) in (Reason.TPM_STRUCTURE_MALFORMED, Reason.TPM_TRAILING_BYTES)
    forged = tpm.certify(expected.qualifying("quote"), kind=QUOTE)
    assert judge(tpm, quote_attest=forged) in (
        Reason.TPM_STRUCTURE_MALFORMED,
        Reason.TPM_TRAILING_BYTES,
        Reason.TPM_ALGORITHM_REFUSED,
    )


def test_a_structure_signed_by_another_key_is_refused() -> None:
    tpm, other, expected = SoftTpm(MAKER), SoftTpm(MAKER), asked()
    forged = tpm.certify(expected.qualifying("certify"))
    assert judge(tpm, certify_signature=signature(other.ak, forged)) is Reason.ATTEST_SIGNATURE

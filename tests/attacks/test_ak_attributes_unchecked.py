"""Attack: AK attributes unchecked (many tutorials and verifiers).

An unrestricted key signs a forged attestation happily, a movable one lives in another TPM: attributes decide. Each of
restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin, decrypt is flipped, one at a time; each is refused with
its own reason, at enrolment and at renewal.
"""

from __future__ import annotations

import pytest

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.endorsement import MakerTrust
from pki.tpm.verdict import EnrolledKeys, identify
from tests.support.soft_tpm import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    NOW,
    NULL,
    ORIGIN,
    RESTRICTED,
    SIGN,
    SoftTpm,
    public_area,
)

FLIPS = {
    "restricted": RESTRICTED,
    "sign": SIGN,
    "decrypt": DECRYPT,
    "fixedTPM": FIXED_TPM,
    "fixedParent": FIXED_PARENT,
    "sensitiveDataOrigin": ORIGIN,
}
MAKER = TpmMaker.create()


def identify_with(tpm: SoftTpm) -> None:
    identify(tpm.begin(), MakerTrust(hardware=(MAKER.root,)), NOW)


@pytest.mark.parametrize(("name", "bit"), FLIPS.items())
def test_each_flipped_attribute_of_the_ak_is_refused(name: str, bit: int) -> None:
    tpm = SoftTpm(MAKER)
    tpm.ak_attributes ^= bit
    with pytest.raises(Fault, match=name) as caught:
        identify_with(tpm)
    assert caught.value.reason is Reason.AK_ATTRIBUTE
    assert caught.value.field == "begin.ak_public"
    with pytest.raises(Fault, match=name):
        EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)


def test_an_ak_without_a_scheme_is_refused() -> None:
    tpm = SoftTpm(MAKER)
    area = public_area(tpm.ak.public_key(), tpm.ak_attributes, scheme=NULL)
    with pytest.raises(Fault, match="scheme") as caught:
        EnrolledKeys.parse(area, tpm.tls_area)
    assert caught.value.reason is Reason.AK_ATTRIBUTE


@pytest.mark.parametrize(("name", "bit"), FLIPS.items())
def test_each_flipped_attribute_of_the_tls_key_is_refused(name: str, bit: int) -> None:
    tpm = SoftTpm(MAKER)
    tpm.tls_attributes ^= bit
    with pytest.raises(Fault, match=name) as caught:
        identify_with(tpm)
    assert caught.value.reason is Reason.TLS_KEY_ATTRIBUTE
    assert caught.value.field == "begin.tls_public"


def test_every_refusal_tells_its_own_detail() -> None:
    details = set()
    for bit in FLIPS.values():
        tpm = SoftTpm(MAKER)
        tpm.ak_attributes ^= bit
        with pytest.raises(Fault) as caught:
            identify_with(tpm)
        details.add(caught.value.detail)
    assert len(details) == len(FLIPS)
    identify_with(SoftTpm(MAKER))

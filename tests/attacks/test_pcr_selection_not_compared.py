"""Attack: PCR selection not compared (CVE-2024-29039).

PCRs that anybody may extend or reset (16, 23, 8 to 15) are quoted and labelled 0 to 7. The *signed* selection and
digest alone count: everything here is signed by a good AK.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from pki.tpm.verdict import EnrolledKeys, verify
from tests.support.recorded import record
from tests.support.soft_tpm import PCRS, SHA256, SHA384, SoftTpm, asked, selection
from tests.support.swtpm import booted

MAKER = TpmMaker.create()
WANTED = tuple(hashlib.sha256(b"a good boot %d" % n).digest() for n in range(8))


def judge(tpm: SoftTpm, signed: bytes, values: tuple[bytes, ...], **changes: Any) -> Reason:
    expected, keys = asked(), EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    quote = tpm.quote(expected.qualifying("quote"), selection=signed, values=values)
    evidence = tpm.evidence(expected, quote_attest=quote, **{"pcr_values": values, "event_log": b"", **changes})
    with pytest.raises(Fault) as caught:
        verify(keys, evidence, expected, None, reference_required=False)
    return caught.value.reason


@pytest.mark.parametrize(
    "signed",
    [
        selection((SHA256, (8, 9, 10, 11, 12, 13, 14, 15))),
        selection((SHA256, (16,))),
        selection((SHA256, ())),
        selection(),
        selection((SHA256, (*range(8), 23))),
        selection((SHA256, tuple(range(7)))),
        selection((SHA384, PCRS.indices)),
        selection((SHA256, PCRS.indices), (SHA384, PCRS.indices)),
        selection((SHA256, PCRS.indices), (SHA256, (16,))),
        selection((SHA256, (0, 1, 2, 3)), (SHA256, (4, 5, 6, 7))),
    ],
)
def test_only_the_asked_selection_counts(signed: bytes) -> None:
    assert judge(SoftTpm(MAKER), signed, WANTED) is Reason.QUOTE_SELECTION


def test_the_honest_selection_with_the_wanted_values_is_accepted_only_when_they_were_quoted() -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    keys = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    verify(keys, tpm.evidence(expected), expected, None, reference_required=False)
    with pytest.raises(Fault) as caught:
        verify(keys, tpm.evidence(expected, pcr_values=WANTED), expected, None, reference_required=False)
    assert caught.value.reason is Reason.QUOTE_DIGEST


def test_values_in_another_order_are_refused() -> None:
    tpm = SoftTpm(MAKER)
    values = tpm.values(PCRS)
    swapped = (values[1], values[0], *values[2:])
    assert swapped != values
    honest = selection((SHA256, PCRS.indices))
    assert judge(tpm, honest, values, pcr_values=swapped) is Reason.QUOTE_DIGEST


def test_a_real_tpm_that_quotes_other_pcrs_is_refused(tmp_path: Path) -> None:
    with booted(tmp_path / "tpm", MAKER) as device:
        found = record(device, MAKER, "EK-ECC256", PcrSelection("sha256", (16, 23)))
    keys = EnrolledKeys.parse(found.begin.ak_public, found.begin.tls_public)
    verify(keys, found.evidence, found.expected, None, reference_required=False)
    relabelled = asked(
        session=found.expected.session,
        nonce=found.expected.nonce,
        first_message=found.expected.first_message,
        server_spki_sha256=found.expected.server_spki_sha256,
        pcrs=PcrSelection("sha256", (0, 7)),
    )
    with pytest.raises(Fault) as caught:
        verify(keys, found.evidence, relabelled, None, reference_required=False)
    assert caught.value.reason is Reason.QUOTE_SELECTION

"""Attack: clock and reset counters.

A virtual TPM is rolled back to a snapshot, or a copy runs beside it. resetCount, restartCount and clock are compared as
one tuple with those of the last passed attestation, and never go back; what an unorderly stop may lose is allowed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from pki.tpm.attest import Counters
from pki.tpm.verdict import CLOCK_LOSS_MS, EnrolledKeys, verify
from tests.support.recorded import Recording, record
from tests.support.soft_tpm import SoftTpm, asked
from tests.support.swtpm import booted

MAKER = TpmMaker.create()
PREVIOUS = Counters(reset_count=7, restart_count=2, clock=10_000_000, safe=True)


def judge(clock: tuple[int, int, int, int], previous: Counters | None = PREVIOUS) -> Counters:
    """`clock` is clock, resetCount, restartCount, safe."""
    tpm, expected = SoftTpm(MAKER, clock=clock), asked(previous=previous)
    keys = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    return verify(keys, tpm.evidence(expected), expected, None, reference_required=False).counters


@pytest.mark.parametrize(
    "clock",
    [
        (10_000_000, 7, 2, 1),  # the same moment: a repeated request
        (10_000_001, 7, 2, 1),
        (10_000_001, 7, 2, 0),  # `safe` alone refuses nothing
        (10_000_001, 7, 3, 1),  # resumed
        (10_000_001, 8, 0, 1),  # reset: restartCount begins again
        (10_000_000 - 4_000, 8, 0, 0),  # an unorderly stop lost what was not saved
        (10_000_000 - CLOCK_LOSS_MS, 8, 0, 0),
    ],
)
def test_a_tpm_that_went_on_is_accepted(clock: tuple[int, int, int, int]) -> None:
    found = judge(clock)
    assert (found.clock, found.reset_count, found.restart_count, found.safe) == (*clock[:3], bool(clock[3]))


@pytest.mark.parametrize(
    "clock",
    [
        (20_000_000, 6, 2, 1),  # resetCount back, clock ahead
        (20_000_000, 6, 9, 1),
        (20_000_000, 7, 1, 1),  # restartCount back
        (9_999_999, 7, 2, 1),  # clock back
        (9_999_999, 7, 2, 0),  # within one start `safe` excuses nothing
        (9_999_999, 8, 0, 1),  # a snapshot, booted again: resetCount is ahead, but a safe clock never goes back
        (10_000_000 - CLOCK_LOSS_MS - 1, 8, 0, 0),  # more than an unorderly stop loses
        (9_999_999, 7, 3, 1),
        (0, 0, 0, 1),  # TPM2_Clear
    ],
)
def test_a_tpm_that_went_back_is_refused(clock: tuple[int, int, int, int]) -> None:
    with pytest.raises(Fault) as caught:
        judge(clock)
    assert caught.value.reason is Reason.CLOCK_REGRESSED


def test_the_first_attestation_has_nothing_to_compare() -> None:
    assert judge((5, 0, 0, 0), None) == Counters(0, 0, 5, False)


@pytest.mark.parametrize("clock", [(100_001, 8, 0, 1), (100_001, 6, 0, 1), (100_001, 7, 1, 1)])
def test_certify_and_quote_are_of_one_start(clock: tuple[int, int, int, int]) -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    keys = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    quote = tpm.quote(expected.qualifying("quote"), clock=clock)
    with pytest.raises(Fault) as caught:
        verify(keys, tpm.evidence(expected, quote_attest=quote), expected, None, reference_required=False)
    assert caught.value.reason is Reason.QUOTE_COUNTERS


def test_an_old_certify_beside_a_new_quote_is_refused() -> None:
    """Of the two, the earlier one is compared with the last attestation."""
    tpm, expected = SoftTpm(MAKER, clock=(20_000_000, 7, 2, 1)), asked(previous=PREVIOUS)
    keys = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    certify = tpm.certify(expected.qualifying("certify"), clock=(9_000_000, 7, 2, 1))
    with pytest.raises(Fault) as caught:
        verify(keys, tpm.evidence(expected, certify_attest=certify), expected, None, reference_required=False)
    assert caught.value.reason is Reason.CLOCK_REGRESSED


def counters_of(found: Recording, previous: Counters | None) -> Counters:
    keys = EnrolledKeys.parse(found.begin.ak_public, found.begin.tls_public)
    expected = replace(found.expected, previous=previous)
    return verify(keys, found.evidence, expected, None, reference_required=False).counters


def test_a_snapshot_of_a_virtual_tpm_is_found_when_it_is_rolled_back(tmp_path: Path) -> None:
    pcrs = PcrSelection("sha256", tuple(range(8)))
    with booted(tmp_path / "tpm", MAKER) as device:
        device.shut_down()
        snapshot = device.clone(tmp_path / "snapshot")
        device.boot()
        first = counters_of(record(device, MAKER, "EK-ECC256", pcrs), None)
        device.shut_down()
        device.boot()
        # An orderly reset: the counters went on.
        second = counters_of(record(device, MAKER, "EK-ECC256", pcrs), first)
        assert second.reset_count > first.reset_count
    with snapshot:
        rolled_back = record(snapshot, MAKER, "EK-ECC256", pcrs)
    with pytest.raises(Fault) as caught:
        counters_of(rolled_back, second)
    assert caught.value.reason is Reason.CLOCK_REGRESSED

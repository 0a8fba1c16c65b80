"""Attack: event types are unsigned (go-attestation's disclosure note).

Types and data of events are whatever the node says; the PCRs vouch for digests alone. Retyped events, appended events,
and other digest banks must win nothing.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any

import pytest

from deploy.demo.measured_boot import EV_NO_ACTION, EV_SEPARATOR, Measurement, event_log, healthy_boot
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.eventlog import EventLog
from pki.tpm.reference import PcrReference, ReferenceValues
from pki.tpm.verdict import EnrolledKeys, verify
from tests.support.soft_tpm import SoftTpm, asked

MAKER = TpmMaker.create()
GOOD = healthy_boot()
DIGESTS = frozenset(event.digest("sha256") for event in GOOD)
REFERENCE = ReferenceValues("sha256", {n: PcrReference(events=DIGESTS) for n in range(8)})
ROOTKIT = Measurement(4, 0x80000003, b"a rootkit", b"")


def judge(booted: tuple[Measurement, ...], log: bytes) -> Any:
    """A node that booted `booted` tells `log`."""
    tpm, expected = SoftTpm(MAKER, events=booted), asked()
    keys = EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    return verify(keys, tpm.evidence(expected, event_log=log), expected, REFERENCE, reference_required=True)


def refused(booted: tuple[Measurement, ...], log: bytes, reason: Reason) -> None:
    with pytest.raises(Fault) as caught:
        judge(booted, log)
    assert caught.value.reason is reason


def test_a_bad_event_cannot_be_left_out_of_the_log() -> None:
    refused((*GOOD, ROOTKIT), event_log(GOOD, ("sha256",)), Reason.EVENT_LOG_MISMATCH)


def test_a_bad_event_cannot_hide_as_one_that_is_not_extended() -> None:
    hidden = replace(ROOTKIT, event_type=EV_NO_ACTION)
    refused((*GOOD, ROOTKIT), event_log((*GOOD, hidden), ("sha256",)), Reason.EVENT_LOG_MISMATCH)


@pytest.mark.parametrize("event_type", [EV_SEPARATOR, 0x05, 0x0D, 0x80000002, 0x800000E0, 0xFFFFFFFF])
def test_a_retyped_bad_event_is_still_a_bad_digest(event_type: int) -> None:
    retyped = replace(ROOTKIT, event_type=event_type, data=b"an innocent description")
    refused((*GOOD, ROOTKIT), event_log((*GOOD, retyped), ("sha256",)), Reason.REFERENCE_MISMATCH)


def test_good_events_are_good_whatever_they_are_called() -> None:
    """Nothing is decided by type or data, so bending them changes nothing."""
    renamed = tuple(replace(event, event_type=0x0D, data=b"?") for event in GOOD)
    assert judge(GOOD, event_log(renamed, ("sha256",))).explained == frozenset(range(8))


def test_appended_events_are_refused() -> None:
    refused(GOOD, event_log((*GOOD, GOOD[0]), ("sha256",)), Reason.EVENT_LOG_MISMATCH)


def test_events_of_another_pcr_are_refused() -> None:
    moved = tuple(replace(event, pcr=(event.pcr + 1) % 8) for event in GOOD)
    refused(GOOD, event_log(moved, ("sha256",)), Reason.EVENT_LOG_MISMATCH)


def test_reordered_events_are_refused() -> None:
    refused(GOOD, event_log(tuple(reversed(GOOD)), ("sha256",)), Reason.EVENT_LOG_MISMATCH)


def test_other_banks_digests_are_never_taken() -> None:
    """A good story in the SHA-1 and SHA-384 digests, the rootkit in those of SHA-256: the quoted bank alone counts."""
    log = event_log((*GOOD, ROOTKIT), ("sha1", "sha256", "sha384"))
    for bank in ("sha1", "sha384"):
        log = log.replace(ROOTKIT.digest(bank), hashlib.new(bank, GOOD[3].measured).digest())
    refused((*GOOD, ROOTKIT), log, Reason.REFERENCE_MISMATCH)
    refused((*GOOD, ROOTKIT), event_log(GOOD, ("sha1", "sha384")), Reason.EVENT_LOG_MISMATCH)


def test_a_bank_is_named_once() -> None:
    """Two digests of one bank in an event: a reader of the first and a reader of the last would disagree."""
    digests = (b"\x0b\x00" + GOOD[0].digest("sha256"), b"\x0b\x00" + ROOTKIT.digest("sha256"))
    twice = struct.pack("<III", 4, 0x0D, 2) + b"".join(digests) + struct.pack("<I", 0)
    with pytest.raises(Fault) as caught:
        EventLog.parse(event_log(GOOD, ("sha256", "sha384")) + twice, "log")
    assert caught.value.reason is Reason.EVENT_LOG_MALFORMED

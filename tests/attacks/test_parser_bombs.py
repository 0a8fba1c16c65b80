"""Attack: parser bombs (go-attestation #486 to #515): event log, attest, public, certificate, CSR.

Sizes that promise gigabytes, counts that promise billions, nesting without end, the largest inputs that the caps let
in: each is refused or parsed within a budget of work and memory. Work is counted in function calls and memory by
tracemalloc, so that a busy machine changes nothing. The wire format is JSON (no CBOR): its caps are the messages'.
"""

from __future__ import annotations

import struct
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from deploy.demo.measured_boot import event_log
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import MAX_CERTIFICATE_BYTES, MAX_EVENT_LOG_BYTES
from pki.tpm.attest import Attest, AttestType
from pki.tpm.der import check_der
from pki.tpm.endorsement import load_certificate
from pki.tpm.eventlog import EventLog
from pki.tpm.public import Public
from pki.tpm.request import check_request
from pki.tpm.signature import Signature
from tests.support.soft_tpm import SHA256, SoftTpm, asked, selection

TPM = SoftTpm(TpmMaker.create())
QUOTE = TPM.quote(asked().qualifying("quote"))
SPEC_ID = event_log((), ("sha256",))
MAX_CALLS = 400_000
MAX_MEMORY = 16 * 1024 * 1024


def bounded(act: Callable[[], object]) -> Fault | None:
    """Runs `act` within the budget; the fault it ended with, if it did."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls > MAX_CALLS:
            raise AssertionError("too much work")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        act()
    except Fault as fault:
        return fault
    finally:
        sys.setprofile(None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MAX_MEMORY, f"{peak} bytes"
    return None


def refused(act: Callable[[], object], *reasons: Reason) -> None:
    fault = bounded(act)
    assert fault is not None
    assert fault.reason in reasons


MALFORMED = (Reason.TPM_STRUCTURE_MALFORMED, Reason.TPM_TRAILING_BYTES, Reason.TPM_ALGORITHM_REFUSED)


@pytest.mark.parametrize("size", [4097, 1 << 20])
def test_structures_have_a_size_cap(size: int) -> None:
    for parse in (
        lambda raw: Public.parse(raw, "p"),
        lambda raw: Signature.parse(raw, "s"),
        lambda raw: Attest.parse(raw, AttestType.QUOTE, "a"),
    ):
        for raw in (bytes(size), QUOTE + bytes(size), TPM.ek_area + bytes(size)):
            refused(lambda p=parse, r=raw: p(r), Reason.TPM_STRUCTURE_MALFORMED)


def test_sizes_inside_structures_are_bounded() -> None:
    for at in range(len(QUOTE) - 1):
        bomb = QUOTE[:at] + b"\xff\xff" + QUOTE[at + 2 :]
        bounded(lambda raw=bomb: Attest.parse(raw, AttestType.QUOTE, "a"))
    for at in range(len(TPM.ek_area) - 1):
        bomb = TPM.ek_area[:at] + b"\xff\xff" + TPM.ek_area[at + 2 :]
        bounded(lambda raw=bomb: Public.parse(raw, "p"))


def test_counts_of_selections_are_bounded() -> None:
    one, asked_for = selection((SHA256, (0,))), selection((SHA256, tuple(range(8))))
    at = QUOTE.index(asked_for)
    for count in (5, 600, 0xFFFFFFFF):
        bomb = QUOTE[:at] + struct.pack(">I", count) + one[4:] * min(count, 600) + QUOTE[at + len(asked_for) :]
        refused(lambda raw=bomb: Attest.parse(raw, AttestType.QUOTE, "a"), *MALFORMED)


def test_the_largest_log_is_replayed_within_the_budget() -> None:
    event = struct.pack("<IIIH", 4, 0x0D, 1, 0x0B) + bytes(32) + struct.pack("<I", 0)
    log = SPEC_ID + event * ((MAX_EVENT_LOG_BYTES - len(SPEC_ID)) // len(event))
    assert bounded(lambda: EventLog.parse(log, "log").replay("sha256")) is None
    refused(lambda: EventLog.parse(log + event, "log"), Reason.EVENT_LOG_MALFORMED)


@pytest.mark.parametrize("size", [128 * 1024 + 1, 1 << 31, 0xFFFFFFFF])
def test_events_that_promise_much_are_refused(size: int) -> None:
    head = struct.pack("<IIIH", 4, 0x0D, 1, 0x0B) + bytes(32) + struct.pack("<I", size)
    refused(lambda: EventLog.parse(SPEC_ID + head + bytes(size % (1 << 18)), "log"), Reason.EVENT_LOG_MALFORMED)
    legacy = struct.pack("<II20xI", 0, 3, size)
    refused(lambda: EventLog.parse(legacy + bytes(200_000), "log"), Reason.EVENT_LOG_MALFORMED)


@pytest.mark.parametrize("count", [0, 2, 0xFFFF, 0xFFFFFFFF])
def test_digests_and_banks_are_counted_first(count: int) -> None:
    event = struct.pack("<III", 4, 0x0D, count)
    refused(lambda: EventLog.parse(SPEC_ID + event + bytes(100_000), "log"), Reason.EVENT_LOG_MALFORMED)
    bomb = SPEC_ID.replace(struct.pack("<IHH", 1, 0x0B, 32), struct.pack("<IHH", count, 0x0B, 32))
    refused(lambda: EventLog.parse(bomb, "log"), Reason.EVENT_LOG_MALFORMED)


def test_digest_sizes_are_those_of_their_algorithms() -> None:
    for number, size in ((0x0B, 0), (0x0B, 0xFFFF), (0x99, 32)):
        bomb = SPEC_ID.replace(struct.pack("<HH", 0x0B, 32), struct.pack("<HH", number, size))
        refused(lambda raw=bomb: EventLog.parse(raw, "log"), Reason.EVENT_LOG_MALFORMED)


def nested(depth: int) -> bytes:
    raw = b"\x05\x00"
    for _ in range(depth):
        size = len(raw)
        raw = b"\x30" + (bytes([size]) if size < 128 else b"\x82" + struct.pack(">H", size)) + raw
    return raw


def test_nested_der_is_refused() -> None:
    for depth in (17, 100, 1500):
        raw = nested(depth)
        for act in (
            lambda r=raw: load_certificate(r, "c"),
            lambda r=raw: check_request(r, b"", "csr"),
            lambda r=raw: check_der(r, Reason.CSR_MALFORMED, "d"),
        ):
            refused(act, Reason.EK_CERTIFICATE_MALFORMED, Reason.CSR_MALFORMED)


def test_wide_der_is_parsed_within_the_budget() -> None:
    body = b"\x05\x00" * ((MAX_CERTIFICATE_BYTES - 4) // 2)
    wide = b"\x30\x82" + struct.pack(">H", len(body)) + body
    refused(lambda: load_certificate(wide, "c"), Reason.EK_CERTIFICATE_MALFORMED)
    refused(lambda: check_request(wide, b"", "csr"), Reason.CSR_MALFORMED)


@pytest.mark.parametrize("length", [b"\x84\x7f\xff\xff\xff", b"\x88" + b"\xff" * 8, b"\xfe" + b"\xff" * 126, b"\x80"])
def test_der_that_promises_much_is_refused(length: bytes) -> None:
    refused(lambda: load_certificate(b"\x30" + length + bytes(100), "c"), Reason.EK_CERTIFICATE_MALFORMED)

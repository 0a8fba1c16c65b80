"""Linux's runtime measurements: logs in the kernel's format, replayed beside an independent computation.

The logs are written here, field by field as the kernel's sources have it (ima_fs.c, ima_template_lib.c, ima_queue.c):
no kernel that measures was at hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.measurements import MAX_MEASUREMENTS_BYTES, framed
from pki.tpm.ima import Aggregate, RuntimeReference, parse_measurements
from tests.support.attesting import ima_entry, pcr_10

BOOT = ima_entry(b"boot_aggregate", bytes(range(32)))
GOOD = hashlib.sha256(b"agent").digest()
START = Aggregate.at_reset("sha256")

paths = st.binary(min_size=1, max_size=60).filter(lambda path: b"\x00" not in path)
entries = st.builds(
    lambda path, digest, sig, violation: ima_entry(path, digest, sig=sig, violation=violation),
    paths,
    st.binary(min_size=32, max_size=32),
    st.one_of(st.none(), st.binary(max_size=80)),
    st.booleans(),
)


@given(st.lists(entries, max_size=12))
def test_every_log_replays_as_the_kernel_extended(log: list[bytes]) -> None:
    found = parse_measurements(b"".join(log), "log")
    assert START.extended(found, "sha256") == Aggregate(len(log), pcr_10(log))


@given(st.lists(entries, max_size=12), st.data())
def test_a_log_in_parts_comes_to_the_same(log: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    first, second = (parse_measurements(b"".join(part), "log") for part in (log[:cut], log[cut:]))
    whole = START.extended(parse_measurements(b"".join(log), "log"), "sha256")
    assert START.extended(first, "sha256").extended(second, "sha256") == whole


@given(st.lists(entries, min_size=1, max_size=4), st.data())
def test_no_octet_can_change_unseen(log: list[bytes], data: st.DataObject) -> None:
    """Another octet anywhere: refused, or another value. Of a violation only that it was one is sure."""
    at = data.draw(st.integers(0, len(log) - 1))
    raw = bytearray(log[at])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(Fault):
        changed = parse_measurements(b"".join([*log[:at], bytes(raw), *log[at + 1 :]]), "log")
        unsure = changed[at].entry.is_violation and log[at][4:24] == bytes(20)
        assert unsure or START.extended(changed, "sha256").value != pcr_10(log)


@given(st.binary(max_size=400))
def test_whatever_comes_is_a_log_or_a_fault(raw: bytes) -> None:
    with contextlib.suppress(Fault):
        found = parse_measurements(raw, "log")
        assert sum(1 for _ in framed(raw)) == len(found)


@given(st.lists(entries, max_size=3), st.binary(max_size=40))
def test_a_log_that_ends_within_an_entry_is_refused(log: list[bytes], rest: bytes) -> None:
    raw = b"".join(log) + (BOOT + rest)[: len(BOOT) - 1]
    with pytest.raises(Fault) as caught:
        parse_measurements(raw, "log")
    assert caught.value.reason is Reason.MEASUREMENTS_MALFORMED


def _entry(data: bytes, name: bytes = b"ima-ng", digest: bytes | None = None, pcr: int = 10) -> bytes:
    sha1 = hashlib.sha1(data, usedforsecurity=False).digest() if digest is None else digest
    return struct.pack("<I", pcr) + sha1 + struct.pack("<I", len(name)) + name + struct.pack("<I", len(data)) + data


def _fields(*fields: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in fields)


NG = (b"sha256:\x00" + GOOD, b"/usr/bin/agent\x00")


@pytest.mark.parametrize(
    "raw",
    [
        _entry(_fields(*NG), pcr=11),
        _entry(_fields(*NG), name=b"ima"),
        _entry(_fields(*NG), name=b"ima-buf"),
        _entry(_fields(*NG), name=b"ima-sig"),  # a field too few
        _entry(_fields(*NG, b"sig")),  # one too many
        _entry(_fields(*NG) + b"\x00"),
        _entry(_fields(*NG), digest=b"\x01" * 20),  # not the SHA-1 of its data
        _entry(_fields(*NG), digest=bytes(20)),  # a violation with a digest
        _entry(_fields(b"sha1:\x00" + bytes(20), NG[1])),
        _entry(_fields(b"md5:\x00" + bytes(16), NG[1])),
        _entry(_fields(b"sha256:\x00" + GOOD[1:], NG[1])),
        _entry(_fields(b"sha256" + GOOD, NG[1])),
        _entry(_fields(NG[0], b"/usr/bin/agent")),
        _entry(_fields(NG[0], b"/usr\x00/bin\x00")),
        _entry(_fields(NG[0], b"\x00")),
        _entry(_fields(NG[0], b"/" * 5000 + b"\x00")),
        _entry(_fields(*NG), name=b"n" * 33),
        _entry(b"", name=b""),
        struct.pack("<I", 10) + bytes(20) + struct.pack("<I", 6) + b"ima-ng" + struct.pack("<I", 1 << 30),
        b"\xff" * 64,
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(Fault) as caught:
        parse_measurements(raw, "log")
    assert caught.value.reason is Reason.MEASUREMENTS_MALFORMED


def test_a_log_is_bounded() -> None:
    with pytest.raises(Fault) as caught:
        parse_measurements(bytes(MAX_MEASUREMENTS_BYTES + 1), "log")
    assert caught.value.reason is Reason.MEASUREMENTS_MALFORMED


def test_longer_digests_and_old_violations_are_read() -> None:
    """Before Linux 6.4 a violation has twenty zeros, whatever the hash."""
    for algorithm, size in ((b"sha384", 48), (b"sha512", 64)):
        (found,) = parse_measurements(_entry(_fields(algorithm + b":\x00" + b"d" * size, NG[1])), "log")
        assert found.digest == b"d" * size
    (found,) = parse_measurements(_entry(_fields(b"sha256:\x00" + bytes(20), NG[1]), digest=bytes(20)), "log")
    assert found.entry.is_violation


def refusal(reference: RuntimeReference, *log: bytes, first: int = 0) -> Reason | None:
    try:
        reference.check(parse_measurements(b"".join(log), "log"), first)
    except Fault as fault:
        return fault.reason
    return None


def test_what_is_listed_may_run_by_whatever_path() -> None:
    reference = RuntimeReference(frozenset({GOOD}))
    assert refusal(reference, BOOT, ima_entry(b"/usr/bin/agent", GOOD), ima_entry(b"/tmp/copy", GOOD)) is None
    assert refusal(reference, BOOT, ima_entry(b"/usr/bin/agent", bytes(32))) is Reason.MEASUREMENT_UNKNOWN


def test_the_kernel_s_own_entry_is_the_first_and_only_that() -> None:
    reference = RuntimeReference(frozenset({GOOD}))
    assert refusal(reference, BOOT) is None
    assert refusal(reference, BOOT, BOOT) is Reason.MEASUREMENT_UNKNOWN
    assert refusal(reference, BOOT, first=1) is Reason.MEASUREMENT_UNKNOWN
    assert refusal(reference, ima_entry(b"/boot_aggregate", bytes(32))) is Reason.MEASUREMENT_UNKNOWN


def test_a_violation_is_refused_unless_it_is_allowed() -> None:
    """Even of a file that is listed: nobody knows what ran."""
    log = (BOOT, ima_entry(b"/var/log/x", GOOD, violation=True))
    assert refusal(RuntimeReference(frozenset({GOOD, bytes(32)})), *log) is Reason.MEASUREMENT_UNKNOWN
    assert refusal(RuntimeReference(frozenset(), violations=True), *log) is None

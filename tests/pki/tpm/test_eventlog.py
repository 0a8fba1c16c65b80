"""The event log: what `tpm2_eventlog` and the PCRs say of it, we say."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.demo.measured_boot import EV_NO_ACTION, Measurement, event_log, healthy_boot
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.eventlog import EventLog
from tests.support.recorded import Recording, recordings  # noqa: F401  # fixture
from tests.support.soft_tpm import boot
from tests.support.swtpm import maker  # noqa: F401  # fixture

FEW = settings(max_examples=150, deadline=None)
LOG = event_log(healthy_boot(), ("sha1", "sha256", "sha384"))
measurements = st.lists(
    st.builds(
        Measurement,
        st.integers(0, 23),
        st.integers(0, 2**32 - 1).filter(lambda kind: kind != EV_NO_ACTION),
        st.binary(max_size=40),
        st.binary(max_size=40),
    ),
    max_size=30,
)


def no_action(data: bytes, banks: tuple[str, ...] = ("sha256",)) -> bytes:
    """A TCG_PCR_EVENT2 that is not extended."""
    numbers = {"sha1": 4, "sha256": 11, "sha384": 12}
    digests = b"".join(struct.pack("<H", numbers[bank]) + bytes(hashlib.new(bank).digest_size) for bank in banks)
    return struct.pack("<III", 0, EV_NO_ACTION, len(banks)) + digests + struct.pack("<I", len(data)) + data


def locality(n: int) -> bytes:
    return no_action(b"StartupLocality\0" + bytes([n]))


def malformed(raw: bytes) -> Fault:
    with pytest.raises(Fault) as caught:
        EventLog.parse(raw, "log")
    assert caught.value.reason is Reason.EVENT_LOG_MALFORMED
    return caught.value


def test_a_booted_devices_log_replays_to_its_pcrs(recordings: dict[str, Recording]) -> None:  # noqa: F811
    found = recordings["EK-ECC256"].evidence
    replayed = EventLog.parse(found.event_log, "log").replay("sha256")
    assert tuple(replayed[n] for n in range(8)) == found.pcr_values


def test_tpm2_eventlog_agrees(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(LOG)
    run = subprocess.run(["tpm2_eventlog", "log"], cwd=tmp_path, check=True, capture_output=True, text=True)
    theirs, ours = yaml.safe_load(run.stdout), EventLog.parse(LOG, "log")
    assert len(theirs["events"]) == len(ours.events) + 1  # the Spec ID event is a header to us
    for bank, values in theirs["pcrs"].items():
        if bank == "sha1":
            continue  # never decided on
        replayed = ours.replay(bank)
        assert {n: replayed[n] for n in values} == {
            n: value.to_bytes(len(replayed[n]), "big") for n, value in values.items()
        }


@FEW
@given(measurements)
def test_replay_is_a_chain_of_hashes(events: list[Measurement]) -> None:
    log = EventLog.parse(event_log(events, ("sha1", "sha256", "sha384")), "log")
    for bank in ("sha256", "sha384"):
        assert log.replay(bank) == boot(tuple(events), bank)
    assert sum(map(len, log.digests("sha256").values())) == len(events)


@pytest.mark.parametrize("n", [0, 3, 4])
def test_the_startup_locality_is_where_pcr_0_begins(n: int) -> None:
    head = event_log((), ("sha256",))
    tail = event_log(healthy_boot(), ("sha256",))[len(head) :]
    log = EventLog.parse(head + locality(n) + tail, "log")
    assert log.replay("sha256") == boot(healthy_boot(), locality=n)


def test_an_odd_late_or_second_locality_is_refused() -> None:
    head = event_log((), ("sha256",))
    tail = event_log(healthy_boot(), ("sha256",))[len(head) :]
    for raw in (head + locality(1), head + tail + locality(3), head + locality(3) + locality(3)):
        assert "locality" in malformed(raw).detail


def test_a_log_of_the_sha1_form_is_refused() -> None:
    old = struct.pack("<II20sI", 0, 8, b"d" * 20, 4) + b"data"
    assert "SHA-1" in malformed(old).detail
    assert "SHA-1" in malformed(LOG.replace(b"Spec ID Event03", b"Spec ID Event00")).detail


@pytest.mark.parametrize("size", range(0, len(LOG), 41))
def test_a_cut_log_is_refused_unless_it_ends_between_events(size: int) -> None:
    try:
        events = EventLog.parse(LOG[:size], "log").events
    except Fault as fault:
        assert fault.reason is Reason.EVENT_LOG_MALFORMED  # noqa: PT017  # both outcomes are right, by the place
    else:
        assert len(events) < len(healthy_boot())


@FEW
@given(st.data())
def test_mutations_are_faults_or_parse(data: st.DataObject) -> None:
    bent = bytearray(LOG)
    for _ in range(data.draw(st.integers(1, 6))):
        bent[data.draw(st.integers(0, len(LOG) - 1))] = data.draw(st.integers(0, 255))
    try:
        EventLog.parse(bytes(bent), "log").replay("sha256")
    except Fault as fault:
        assert fault.reason is Reason.EVENT_LOG_MALFORMED  # noqa: PT017  # a parse is as good

"""A node's report: what goes through, what is refused, what is judged wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.health import (
    MAX_REPORT_BYTES,
    Ailment,
    Bundle,
    Disk,
    Firewall,
    HealthReport,
    Load,
    Memory,
    Outbox,
    ServiceHealth,
    Standing,
    Temperature,
    Tunnels,
    ailments,
    standing,
)

AT = 1_800_000_000.0
COUNTS = st.integers(0, 2**40)
SHORT = st.text(st.characters(codec="utf-8", min_codepoint=1), max_size=12)
SIZES = st.integers(0, 2**60)
NUMBERS = st.floats(0, 1e9)
REPORTS = st.builds(
    HealthReport,
    at=st.floats(0, 1e11),
    interval=st.floats(1, 86_400),
    versions=st.dictionaries(SHORT, SHORT, max_size=5),
    boot_id=SHORT,
    uptime=st.none() | NUMBERS,
    disks=st.lists(st.builds(Disk, SHORT, SIZES, SIZES), max_size=3).map(tuple),
    memory=st.none() | st.builds(Memory, SIZES, SIZES, SIZES),
    load=st.none() | st.builds(Load, NUMBERS, NUMBERS, NUMBERS),
    temperatures=st.lists(st.builds(Temperature, SHORT, st.floats(-273, 1000)), max_size=3).map(tuple),
    clock_skew=st.none() | st.floats(-1e9, 1e9),
    certificate_until=st.none() | NUMBERS,
    attested_until=st.none() | NUMBERS,
    tunnels=st.none() | st.builds(Tunnels, st.integers(0, 64), st.integers(0, 64)),
    firewall=st.none() | st.sampled_from(Firewall),
    services=st.lists(st.builds(ServiceHealth, SHORT, SHORT, COUNTS, COUNTS, SHORT), max_size=3).map(tuple),
    outbox=st.none() | st.builds(Outbox, COUNTS, SIZES, SIZES),
    bundle=st.none() | st.builds(Bundle, st.integers(0, 2**63 - 1), NUMBERS),
)
WELL = HealthReport(
    at=AT,
    interval=300,
    disks=(Disk("/", 100, 50),),
    memory=Memory(100, 50, 5),
    temperatures=(Temperature("cpu", 40),),
    clock_skew=0.1,
    certificate_until=AT + 3000,
    attested_until=AT + 100,
    tunnels=Tunnels(2, 2),
    firewall=Firewall.IN_FORCE,
    services=(ServiceHealth("infer", "running", 0, 0),),
    outbox=Outbox(1, 10, 100),
)


@given(REPORTS)
def test_a_report_is_read_as_it_was_written(report: HealthReport) -> None:
    raw = report.encode()
    assert len(raw) <= MAX_REPORT_BYTES
    assert HealthReport.parse(raw) == report


@given(st.binary(max_size=200) | st.dictionaries(st.text(), st.integers()).map(lambda each: json.dumps(each).encode()))
def test_anything_else_is_refused_by_its_reason(raw: bytes) -> None:
    with pytest.raises(Fault) as caught:
        HealthReport.parse(raw)
    assert caught.value.reason in (Reason.MESSAGE_MALFORMED, Reason.MESSAGE_TOO_LARGE)


@pytest.mark.parametrize(
    "claim", ["roles", "segment", "site", "region", "tier", "labels", "state", "posture", "id", "attestation"]
)
def test_a_node_has_no_word_for_what_an_operator_says_of_it(claim: str) -> None:
    with pytest.raises(Fault) as caught:
        HealthReport.parse(json.dumps({**WELL.document(), claim: "x"}).encode())
    assert caught.value.reason is Reason.MESSAGE_MALFORMED


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": 0},
        {"interval": 86_401},
        {"versions": {"a" * 200: "1"}},
        {"versions": {str(i): "1" for i in range(41)}},
        {"disks": [{"path": "/", "total": 1, "free": 1, "owner": 1}]},
        {"disks": [{"path": "/", "total": -1, "free": 1}]},
        {"services": [{"name": "x", "phase": "running", "failures": 0, "restarts": 0}] * 33},
        {"temperatures": [{"sensor": "x", "celsius": 1e4}]},
        {"firewall": "open"},
        {"load": [1, 2, 3]},
    ],
)
def test_bounds_are_kept(wrong: dict[str, Any]) -> None:
    with pytest.raises(Fault):
        HealthReport.parse(json.dumps({**WELL.document(), **wrong}).encode())


@pytest.mark.parametrize(
    ("change", "ailment"),
    [
        ({"disks": (Disk("/", 100, 50), Disk("/var", 100, 4))}, Ailment.DISK_FULL),
        ({"memory": Memory(100, 4, 4)}, Ailment.MEMORY_SHORT),
        ({"temperatures": (Temperature("cpu", 95),)}, Ailment.HOT),
        ({"clock_skew": -5.1}, Ailment.CLOCK_OFF),
        ({"certificate_until": AT + 299}, Ailment.CERTIFICATE_ENDING),
        ({"attested_until": AT}, Ailment.ATTESTATION_OVER),
        ({"tunnels": Tunnels(1, 2)}, Ailment.TUNNELS_MISSING),
        ({"firewall": Firewall.DRIFTED}, Ailment.FIREWALL_DRIFTED),
        ({"services": (ServiceHealth("infer", "backing_off", 3, 3, "exit 1"),)}, Ailment.SERVICE_FAILING),
        ({"outbox": Outbox(9, 81, 100)}, Ailment.OUTBOX_FILLING),
    ],
)
def test_what_is_wrong_is_named_alone(change: dict[str, Any], ailment: Ailment) -> None:
    assert ailments(WELL) == ()
    assert ailments(replace(WELL, **change)) == (ailment,)


def test_a_missing_fact_is_not_wrong() -> None:
    assert ailments(HealthReport(AT, 300)) == ()


@given(st.booleans(), st.floats(0, 1e10), st.floats(0, 1e10))
def test_a_node_that_is_overdue_is_silent_whatever_it_said_last(ails: bool, due: float, now: float) -> None:
    found = standing(ails=ails, due=due, now=now)
    assert (found is Standing.SILENT) == (now > due)
    if now <= due:
        assert found is (Standing.AILING if ails else Standing.WELL)

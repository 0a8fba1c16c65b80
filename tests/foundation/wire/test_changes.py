"""The feed's lines: every change comes back as it was, and nothing else is read as a change."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import (
    AttestationClass,
    Change,
    Heartbeat,
    IdentityChanged,
    IdentityRecord,
    PolicyPublished,
    Posture,
    PostureChanged,
    Renewal,
    Revocation,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason
from foundation.wire.changes import MAX_FACT_BYTES, encode_change, parse_change

_NUMBER = st.integers(0, 2**63 - 1)
_SECONDS = st.floats(0, 1e10, allow_nan=False)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_ID = st.builds(
    SpiffeId, st.just("fleet.example"), st.sampled_from(Kind), st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
)
_TEXTS = st.dictionaries(_TEXT, _TEXT, max_size=3)
_RECORDS = st.builds(
    IdentityRecord,
    _ID,
    st.sampled_from(State),
    _NUMBER,
    st.lists(_TEXT, max_size=3).map(tuple),
    st.integers(0, 3),
    _TEXT,
    _TEXT,
    _TEXT,
    _TEXTS,
    _TEXTS,
)
_SERIAL = st.from_regex(r"[0-9a-f]{0,36}", fullmatch=True)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(Revocation, _NUMBER, _ID, _SERIAL, _TEXT, _SECONDS),
    st.builds(
        PostureChanged,
        _NUMBER,
        _ID,
        st.builds(Posture, st.sampled_from(AttestationClass), st.sampled_from(Verdict)),
        _SECONDS,
        _SECONDS,
        st.none() | st.builds(Renewal, _SERIAL, _SERIAL, _SECONDS),
    ),
    st.builds(IdentityChanged, _NUMBER, _RECORDS, _SECONDS),
    st.builds(PolicyPublished, _NUMBER, st.binary(max_size=200), _SECONDS),
    st.builds(Heartbeat, _SECONDS, st.builds(SnapshotNumbers, _NUMBER, _NUMBER, _NUMBER, _NUMBER)),
)
BEAT: dict[str, Any] = {
    "type": "heartbeat",
    "at": 5.5,
    "numbers": {"policy": 1, "revocations": 2, "postures": 3, "inventory": 4},
}
NODE = "spiffe://fleet.example/node/n1"
REVOKED: dict[str, Any] = {
    "type": "revocation",
    "number": 1,
    "id": NODE,
    "serial": "0a",
    "reason": "unspecified",
    "at": 1,
}
POSTURE: dict[str, Any] = {
    "type": "posture",
    "number": 1,
    "id": NODE,
    "attestation": "virtual",
    "verdict": "passed",
    "attested_until": 9,
}


@given(change=CHANGES)
@settings(max_examples=150)
def test_a_change_is_one_line_and_comes_back(change: Change) -> None:
    line = encode_change(change)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    found = parse_change(line[:-1])
    assert found == change
    assert getattr(found, "at", 0.0) == getattr(change, "at", 0.0)  # no part of what a change says, but told


@given(change=CHANGES, data=st.data())
@settings(max_examples=150)
def test_a_changed_byte_never_breaks_the_reader(change: Change, data: st.DataObject) -> None:
    line = bytearray(encode_change(change)[:-1])
    line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Fault):  # anything else fails the test
        read = parse_change(bytes(line))
        assert parse_change(encode_change(read)[:-1]) == read


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (BEAT | {"type": "forget-everything"}, "change.type"),
        (without(BEAT, "type"), "change.type"),
        (BEAT | {"surplus": 1}, "change"),
        (BEAT | {"at": -1}, "change.at"),
        (BEAT | {"at": True}, "change.at"),
        (BEAT | {"at": "5"}, "change.at"),
        (BEAT | {"numbers": {**BEAT["numbers"], "more": 1}}, "change.numbers"),
        (BEAT | {"numbers": without(BEAT["numbers"], "policy")}, "change.numbers.policy"),
        (REVOKED | {"id": "spiffe://fleet.example/node"}, "change.id"),
        (REVOKED | {"serial": "0A"}, "change.serial"),
        (REVOKED | {"serial": "a" * 41}, "change.serial"),
        (REVOKED | {"number": -1}, "change.number"),
        (REVOKED | {"number": 1.0}, "change.number"),
        (without(REVOKED, "serial"), "change.serial"),
        (POSTURE | {"verdict": "fine"}, "change.verdict"),
        (POSTURE | {"attestation": "HARDWARE"}, "change.attestation"),
        ({"type": "policy", "revision": 1, "bundle": "AA"}, "change.bundle"),
        ({"type": "identity", "number": 1, "record": {"id": NODE}}, "change.record.state"),
    ],
)
def test_what_is_no_change_is_refused_by_its_field(document: dict[str, Any], field: str) -> None:
    with pytest.raises(Fault) as caught:
        parse_change(json.dumps(document).encode())
    assert (caught.value.reason, caught.value.field) == (Reason.MESSAGE_MALFORMED, field)


def test_only_a_policys_line_may_be_long() -> None:
    long = "x" * MAX_FACT_BYTES
    with pytest.raises(Fault) as caught:
        parse_change(json.dumps(REVOKED | {"reason": long}).encode())
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    published = PolicyPublished(7, bytes(MAX_FACT_BYTES))
    assert parse_change(encode_change(published)[:-1]) == published

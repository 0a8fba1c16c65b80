"""Reference values as they are written down."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from pki.tpm.ima import RuntimeReference
from pki.tpm.reference import PcrReference, ReferenceValues

GOOD = "ab" * 32


def parse(value: dict[str, Any]) -> ReferenceValues:
    raw = json.dumps(value).encode()
    return ReferenceValues.parse(Fields.from_json(raw, "reference", Reason.SETTING_INVALID, max_bytes=65536))


def test_values_and_events_are_read() -> None:
    found = parse({"bank": "sha256", "pcrs": {"0": {"values": [GOOD]}, "7": {"events": [GOOD], "required": [GOOD]}}})
    digest = bytes.fromhex(GOOD)
    assert found.pcrs == {
        0: PcrReference(values=frozenset({digest})),
        7: PcrReference(events=frozenset({digest}), required=frozenset({digest})),
    }


@pytest.mark.parametrize(
    "value",
    [
        {"pcrs": {"24": {"values": [GOOD]}}},
        {"pcrs": {"00": {"values": [GOOD]}}},
        {"pcrs": {"0": {"values": [GOOD[2:]]}}},
        {"pcrs": {"0": {"values": [GOOD.upper()]}}},
        {"pcrs": {"0": {"values": ["xx" * 32]}}},
        {"pcrs": {"0": {"value": [GOOD]}}},
        {"bank": "sha1", "pcrs": {}},
        {"bank": "sha384", "pcrs": {"0": {"values": [GOOD]}}},
        {},
    ],
)
def test_what_is_odd_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(Fault) as caught:
        parse(value)
    assert caught.value.reason is Reason.SETTING_INVALID
    assert caught.value.field.startswith("reference")


def test_a_required_event_counts_as_allowed() -> None:
    reference = PcrReference(events=frozenset({b"a"}), required=frozenset({b"b"}))
    assert reference.allows(b"value", (b"a", b"b"))
    assert not reference.allows(b"value", (b"a",))
    assert not reference.allows(b"value", (b"a", b"b", b"c"))
    assert not reference.allows(b"value", None)
    assert PcrReference(required=frozenset({b"b"})).allows(b"value", (b"b",))
    assert not PcrReference().allows(b"value", ())


def test_runtime_values_are_read() -> None:
    longer = "cd" * 48
    found = parse({"pcrs": {}, "runtime": {"digests": [GOOD, longer], "violations": True}})
    assert found.runtime == RuntimeReference(frozenset({bytes.fromhex(GOOD), bytes.fromhex(longer)}), violations=True)
    assert parse({"pcrs": {}}).runtime is None


@pytest.mark.parametrize("digests", [[GOOD[2:]], [GOOD.upper()], ["ab" * 20], ["zz" * 32], "ab", None])
def test_other_runtime_values_are_refused(digests: Any) -> None:
    with pytest.raises(Fault) as caught:
        parse({"pcrs": {}, "runtime": {"digests": digests}})
    assert caught.value.reason is Reason.SETTING_INVALID


def test_equal_values_alone_have_one_fingerprint() -> None:
    other = "ef" * 32
    written = [
        {"pcrs": {}},
        {"pcrs": {"0": {"values": [GOOD]}}},
        {"pcrs": {"1": {"values": [GOOD]}}},
        {"pcrs": {"0": {"events": [GOOD]}}},
        {"pcrs": {"0": {"required": [GOOD]}}},
        {"pcrs": {"0": {"values": [GOOD, other]}}},
        {"pcrs": {}, "runtime": {"digests": []}},
        {"pcrs": {}, "runtime": {"digests": [], "violations": True}},
        {"pcrs": {}, "runtime": {"digests": [GOOD]}},
    ]
    assert len({parse(each).fingerprint for each in written}) == len(written)
    same = [{"pcrs": {"0": {"values": values}}} for values in ([GOOD, other], [other, GOOD])]
    assert len({parse(each).fingerprint for each in same}) == 1

"""Identities from a file: what the inventory prints, or as much as is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from gateway import standing
from pki.api.documents import entry_document
from pki.entries import Entry
from policies.access.identities import DOMAIN, REFUSALS, found_among, read_identities

RECORD = IdentityRecord(
    SpiffeId("fleet.test", Kind.NODE, "n1"), State.QUARANTINED, 3, ("a", "b"), 2, "eu", "s1", "edge", {"room": "attic"}
)
POSTURE = Posture(AttestationClass.VIRTUAL, Verdict.FAILED)


def read(value: Any) -> Any:
    return read_identities(json.dumps(value).encode())


def test_what_the_inventory_prints_is_read() -> None:
    document = entry_document(Entry(RECORD, POSTURE, 1.0, "", b"", b"", b"", None, "", 1, 1, 1.0, 1.0))
    (found,) = read([document])
    assert (found.record.id, found.record.state, found.record.roles) == (RECORD.id, RECORD.state, RECORD.roles)
    assert (found.record.tier, found.record.region, found.record.site) == (2, "eu", "s1")
    assert (found.record.segment, found.record.labels, found.posture) == ("edge", {"room": "attic"}, POSTURE)
    assert found.refusal is Reason.IDENTITY_QUARANTINED


def test_what_is_left_out_is_of_good_standing() -> None:
    node, operator = read({"items": [{"name": "n1"}, {"name": "o1", "kind": "operator"}]})
    assert node.record.id == SpiffeId(DOMAIN, Kind.NODE, "n1")
    assert (node.posture, node.record.tier) == (Posture(AttestationClass.HARDWARE, Verdict.PASSED), 1)
    assert (operator.posture.attestation, operator.record.tier) == (AttestationClass.NONE, 0)
    assert (node.refusal, operator.refusal) == (None, None)


def test_one_is_found_by_name_or_by_id() -> None:
    all_of_them = read([{"name": "x", "kind": "operator"}, {"name": "x"}])
    assert found_among(all_of_them, Kind.NODE, "x") is all_of_them[1]
    assert found_among(all_of_them, Kind.NODE, f"spiffe://{DOMAIN}/operator/x") is all_of_them[0]
    with pytest.raises(Fault) as fault:
        found_among(all_of_them, Kind.SERVICE, "x")
    assert fault.value.reason is Reason.NOT_FOUND


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "n1"}, {"name": "n1"}],
        [{"name": "n1", "state": "well"}],
        [{"name": "n1", "tier": 9}],
        [{"name": "../n1"}],
        [{}],
        ["n1"],
        "n1",
        7,
    ],
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(Fault) as fault:
        read(value)
    assert fault.value.reason is Reason.MESSAGE_MALFORMED


def test_who_is_shut_out_is_whom_the_gateway_shuts_out() -> None:
    assert REFUSALS == standing._BY_STATE

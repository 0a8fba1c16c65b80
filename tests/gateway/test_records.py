"""What ended a stream is on record, and names the decision that it ran by."""

from __future__ import annotations

import pytest

from foundation.faults import Fault
from foundation.identity import IdentityChanged, IdentityRecord, Posture, Revocation, SnapshotNumbers, State, Verdict
from foundation.reasons import Reason
from gateway.proxy.grounds import grounds, no_request, unmet
from gateway.proxy.identify import Peer
from gateway.records import recording_cuts
from gateway.snapshot import Snapshot, SnapshotStore
from gateway.streams.registry import Cut
from policies.model import FOREVER, Answer, Denial, FrozenInput, Obligation, Permit, Query, Staleness, judge
from tests.fakes.clock import ManualClock
from tests.fakes.trust import HARDWARE, record, request, spiffe
from tests.support.gateway import Recorded

NUMBERS = SnapshotNumbers(1, 0, 0, 0)
PEER = Peer(spiffe(), "aa", 1.0, 2.0, b"")


def permit(*obligations: Obligation) -> Permit:
    query = Query(1, record(), HARDWARE, "api", request(), Staleness.FRESH)
    answer = Answer(True, (Reason.GRANTED,), "g", FOREVER, obligations, FrozenInput(b"k", b'{"a":1}'))
    decision = judge("d-permit", query, answer, FOREVER, NUMBERS)
    assert isinstance(decision, Permit)
    return decision


def test_what_ended_a_stream_names_the_permit_it_began_by() -> None:
    recorder = Recorded()
    denial = Denial("d-denial", permit().query, (Reason.NO_GRANT,), NUMBERS, FrozenInput(b"k2", b"{}"), {"state": "x"})
    recording_cuts(recorder, ManualClock())(Cut("d-permit", Reason.CUT_BY_DEADLINE, denial))
    entry = recorder.entries[0]
    assert (entry.id, entry.cut, entry.reasons, entry.input) == ("d-denial", "d-permit", ("no_grant",), b"{}")
    assert entry.facts == {"state": "x", "cut_for": "cut_by_deadline"}


@pytest.mark.parametrize(
    ("reason", "facts"),
    [
        (Reason.CERTIFICATE_EXPIRED, {"serial": "aa", "certificate_ended": 2.0}),
        (Reason.CERTIFICATE_NOT_YET_VALID, {"serial": "aa", "certificate_begins": 1.0}),
        (Reason.POSTURE_FAILED, {"attestation": "hardware"}),
        (Reason.ATTESTATION_EXPIRED, {"attestation_ended": 9.0}),
        (Reason.IDENTITY_QUARANTINED, {"state": "quarantined"}),
        (Reason.IDENTITY_UNKNOWN, {}),
        (Reason.REVISION_MISSING, {}),
    ],
)
def test_a_fixed_rule_rests_on_these(reason: Reason, facts: dict[str, object]) -> None:
    assert grounds(reason, snapshot(record(state=State.QUARANTINED)), PEER, HARDWARE, 9.0) == facts


@pytest.mark.parametrize("serial", ["", "aa"])
def test_a_revocation_is_named_of_certificate_and_identity(serial: str) -> None:
    store = SnapshotStore()
    store.apply(Revocation(3, spiffe(), serial, "superseded", 1.0))
    failed = Posture(HARDWARE.attestation, Verdict.FAILED)
    found = grounds(Reason.IDENTITY_REVOKED, store.current, PEER, failed, 0.0)
    assert found == {"serial": serial, "revocation": 3, "revoked_at": 1.0, "revoked_for": "superseded"}


def test_a_revoked_state_without_a_revocation_is_the_inventorys() -> None:
    found = grounds(Reason.IDENTITY_REVOKED, snapshot(record(state=State.REVOKED)), PEER, HARDWARE, 0.0)
    assert found == {"state": "revoked"}


def test_an_unmet_rate_names_its_grant() -> None:
    rate = Obligation("rate", {"per_second": 5, "burst": 9, "more": "x"})
    assert unmet(permit(rate)) == {"grant": "g", "per_second": 5, "burst": 9}
    assert unmet(permit(Obligation("unheard"))) == {"grant": "g"}


def test_what_is_no_request_says_why_within_bounds() -> None:
    assert no_request(Fault(Reason.REQUEST_MALFORMED)) == {}
    assert no_request(Fault(Reason.ROUTE_UNKNOWN, "host " + "x" * 999)) == {"detail": ("host " + "x" * 999)[:256]}


def snapshot(known: IdentityRecord) -> Snapshot:
    store = SnapshotStore()
    store.apply(IdentityChanged(1, known))
    return store.current

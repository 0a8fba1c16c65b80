"""One order of checks before policy: for every fact that may refuse, alone and beside the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foundation.identity import (
    AttestationClass,
    Heartbeat,
    IdentityChanged,
    Posture,
    PostureChanged,
    Revocation,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from gateway.standing import NO_POSTURE, Standing, refusal_by_standing, standing_of
from tests.fakes.trust import HARDWARE, record, spiffe

FAILED = Posture(AttestationClass.HARDWARE, Verdict.FAILED)
GOOD = Standing(record(), HARDWARE, False)


def test_a_good_standing_refuses_nothing() -> None:
    assert refusal_by_standing(GOOD, 10, 20, 10) is None


@pytest.mark.parametrize(
    ("standing", "now", "reason"),
    [
        (GOOD._replace(revoked=True), 15, Reason.IDENTITY_REVOKED),
        (GOOD, 20, Reason.CERTIFICATE_EXPIRED),
        (GOOD, 9.9, Reason.CERTIFICATE_NOT_YET_VALID),
        (GOOD._replace(record=None), 15, Reason.IDENTITY_UNKNOWN),
        (GOOD._replace(record=record(state=State.EXPECTED)), 15, Reason.IDENTITY_UNKNOWN),
        (GOOD._replace(record=record(state=State.QUARANTINED)), 15, Reason.IDENTITY_QUARANTINED),
        (GOOD._replace(record=record(state=State.REVOKED)), 15, Reason.IDENTITY_REVOKED),
        (GOOD._replace(posture=FAILED), 15, Reason.POSTURE_FAILED),
        (Standing(None, FAILED, True), 20, Reason.IDENTITY_REVOKED),
        (Standing(None, FAILED, False), 20, Reason.CERTIFICATE_EXPIRED),
        (Standing(None, FAILED, False), 15, Reason.IDENTITY_UNKNOWN),
    ],
)
def test_each_fact_refuses_with_its_own_reason(standing: Standing, now: float, reason: Reason) -> None:
    assert refusal_by_standing(standing, 10, 20, now) is reason


def test_a_standing_is_what_the_snapshot_says() -> None:
    store = SnapshotStore()
    assert standing_of(store.current, spiffe(), "aa") == Standing(None, NO_POSTURE, False)
    store.apply(Heartbeat(1.0, SnapshotNumbers(0, 0, 0, 0)))
    store.apply(IdentityChanged(1, record()))
    store.apply(PostureChanged(1, spiffe(), FAILED, 5.0))
    store.apply(Revocation(1, spiffe(), "aa", "stolen", 2.0))
    assert standing_of(store.current, spiffe(), "aa") == Standing(record(), FAILED, True)
    assert standing_of(store.current, spiffe(), "bb") == Standing(record(), FAILED, False)
    store.apply(IdentityChanged(2, replace(record(), epoch=2)))
    store.apply(Revocation(2, spiffe(), "", "stolen", 2.0))
    assert standing_of(store.current, spiffe(), "bb").revoked

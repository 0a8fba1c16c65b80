"""Age of facts → class, and when the next class begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from policies.model import FOREVER, Staleness
from policies.staleness import StalenessSettings, staleness

SETTINGS = StalenessSettings(stale_after=30, expired_after=3600)
ORDER = [Staleness.FRESH, Staleness.STALE, Staleness.EXPIRED]


@pytest.mark.parametrize(
    ("age", "expected", "next_step"),
    [
        (0, Staleness.FRESH, 1030),
        (29.9, Staleness.FRESH, 1030),
        (30, Staleness.STALE, 4600),
        (3599, Staleness.STALE, 4600),
        (3600, Staleness.EXPIRED, FOREVER),
    ],
)
def test_class_follows_the_age_of_the_heartbeat(age: float, expected: Staleness, next_step: float) -> None:
    assert staleness(1000, 1000 + age, SETTINGS) == (expected, next_step)


def test_no_heartbeat_ever_is_expired() -> None:
    assert staleness(0.0, 1_800_000_000, SETTINGS)[0] is Staleness.EXPIRED


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e6))
def test_more_age_never_freshens(heartbeat: float, age: float, more: float) -> None:
    younger, older = (staleness(heartbeat, heartbeat + a, SETTINGS)[0] for a in (age, age + more))
    assert ORDER.index(younger) <= ORDER.index(older)


@pytest.mark.parametrize(
    "section", [{"stale_after": "5s"}, {"stale_after": "2h"}, {"stale_after": "30"}, {"what": "1s"}]
)
def test_bad_bounds_are_refused(section: dict[str, str]) -> None:
    with pytest.raises(Fault) as refused:
        StalenessSettings.parse(Fields(section, "gateway.staleness", Reason.SETTING_INVALID))
    assert refused.value.field.startswith("gateway.staleness")

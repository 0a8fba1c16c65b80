"""How two policies' answers differ, counted and kept within bounds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.identity import SnapshotNumbers
from foundation.reasons import Reason
from policies import shadow
from policies.model import FOREVER, Answer, Obligation, judge
from policies.shadow import Difference, Tally, Verdict, difference, parse_sample, sample_of, verdict_of
from tests.support.queries import QUERIES
from tests.support.workspaces import query

NUMBERS = SnapshotNumbers(1, 0, 0, 0)
PERMIT = Verdict(True, ("granted",), "g", ())
DENIAL = Verdict(False, ("no_grant",), "", ())


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (PERMIT, PERMIT, None),
        (PERMIT, DENIAL, Difference.NOW_DENIED),
        (DENIAL, PERMIT, Difference.NOW_PERMITTED),
        (DENIAL, DENIAL._replace(reasons=("role_missing",)), Difference.OTHER_REASON),
        (PERMIT, PERMIT._replace(grant="h"), Difference.OTHER_GRANT),
        (PERMIT, PERMIT._replace(obligations=("x",)), Difference.OTHER_OBLIGATIONS),
        (PERMIT, Verdict(False, ("engine_timeout",), "", ()), Difference.FAILED),
        (DENIAL, Verdict(False, ("engine_answer_invalid",), "", ()), Difference.FAILED),
    ],
)
def test_a_difference_is_named_by_what_matters_most(before: Verdict, after: Verdict, kind: Difference | None) -> None:
    assert difference(before, after) is kind


@given(
    asked=QUERIES,
    allow=st.booleans(),
    grant=st.sampled_from(("g", "h")),
    ends=st.sampled_from((0.0, 1.0, 2.0, FOREVER)),
    rate=st.sampled_from((None, 1, 2)),
)
def test_a_sample_of_a_decision_is_what_its_own_answer_comes_to(
    asked: object, allow: bool, grant: str, ends: float, rate: int | None
) -> None:
    """A candidate that answers alike never differs, ends of grants included."""
    obligations = () if rate is None else (Obligation("rate", {"per_second": rate}),)
    permit, denial = Answer(True, (Reason.GRANTED,), grant, ends, obligations), Answer(False, (Reason.NO_GRANT,))
    answer = permit if allow else denial
    decision = judge("d-1", asked, answer, FOREVER, NUMBERS)  # type: ignore[arg-type]
    found = parse_sample(sample_of(decision, asked, 3, 1))  # type: ignore[arg-type]
    assert (found.id, found.seen, found.dropped, found.input["now"]) == ("d-1", 3, 1, asked.now)  # type: ignore[attr-defined]
    assert difference(found.verdict, verdict_of(answer, found.input["now"])) is None


def sample(route: str = "r", verdict: Verdict = PERMIT, seen: int = 1, dropped: int = 0) -> shadow.Sample:
    return shadow.Sample("d-1", route, verdict, query(route).to_input(), seen, dropped)


def test_differences_are_counted_by_route_and_kind() -> None:
    tally = Tally()
    assert tally.add(sample(seen=5), PERMIT) is None
    assert tally.add(sample(seen=2, dropped=3), DENIAL) is not None
    tally.add(sample("other"), DENIAL)
    tally.add(sample("other"), DENIAL)
    found = json.loads(json.dumps(tally.to_json()))
    assert (found["seen"], found["compared"], found["dropped"], found["different"]) == (9, 4, 3, 3)
    assert found["differences"] == [
        {"route": "other", "kind": "now_denied", "count": 2},
        {"route": "r", "kind": "now_denied", "count": 1},
    ]
    assert tally.kept[0]["before"] == PERMIT._asdict()


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MAX_ROWS", 3)
    monkeypatch.setattr(shadow, "MAX_KEPT", 5)
    monkeypatch.setattr(shadow, "MAX_KEPT_ALIKE", 2)
    tally = Tally()
    for number in range(10):
        for _ in range(4):
            tally.add(sample(f"r{number}"), DENIAL)
    assert (len(tally.counts), len(tally.kept)) == (4, 5)
    assert tally.counts[shadow.OTHERS, "now_denied"] == 28
    assert tally.to_json()["different"] == 40


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b'{"id": 1, "input": {}}'])
def test_what_is_no_sample_is_an_error(raw: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse_sample(raw)

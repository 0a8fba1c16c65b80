"""What is judged of upstreams from values alone: balance, health, outliers, retries, the breaker."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams.balance import (
    LEAST_SHARE,
    LEAST_WEIGHT,
    SCANNED,
    least_loaded,
    ring,
    shares,
    slow_start_weight,
)
from gateway.upstreams.breaker import why_open
from gateway.upstreams.budget import Failure, has_budget, is_repeatable
from gateway.upstreams.health import UNCHECKED, Health, after
from gateway.upstreams.outlier import Shown, ejection_seconds, may_eject, verdict
from policies.upstreams import Breaker, HealthCheck, Outlier, Retries


@dataclass
class Loaded:
    active: int
    weight: float = 1.0
    share: float = 1.0

    @property
    def load(self) -> float:
        return (self.active / self.share + 1) / self.weight


loads = st.builds(Loaded, st.integers(0, 1000), st.floats(LEAST_WEIGHT, 1.0), st.floats(LEAST_SHARE, 1.0))


# --- balance -----------------------------------------------------------------------------------------


@given(st.lists(loads, min_size=1, max_size=SCANNED), st.integers())
def test_nobody_has_less_to_do_than_the_one_picked(candidates: list[Loaded], start: int) -> None:
    chosen = least_loaded(candidates, start)
    assert all(chosen.load <= each.load for each in candidates)


@given(st.lists(loads, min_size=SCANNED + 1, max_size=64), st.integers())
def test_of_a_large_pool_a_bounded_part_is_compared(candidates: list[Loaded], start: int) -> None:
    chosen = least_loaded(candidates, start)
    better = [each for each in candidates if each.load < chosen.load]
    assert len(better) <= len(candidates) - SCANNED


def test_idle_addresses_are_shared_out_by_start() -> None:
    candidates = [Loaded(0) for _ in range(5)]
    assert {id(least_loaded(candidates, start)) for start in range(5)} == {id(each) for each in candidates}
    assert least_loaded(candidates, 7) is least_loaded(candidates, 7)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=32))
def test_shares_are_in_proportion_to_weights(weights: list[int]) -> None:
    found = shares(weights)
    assert all(LEAST_SHARE <= share <= 1.0 for share in found)
    assert max(found) == 1.0
    for weight, share in zip(weights, found, strict=True):
        if share > LEAST_SHARE and max(weights):
            assert share == weight / max(weights)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_a_ring_has_each_by_its_share(weights: list[int]) -> None:
    candidates = [Loaded(0, share=share) for share in shares(weights)]
    turns = [sum(1 for each in ring(candidates) if each is one) for one in candidates]
    assert min(turns) >= 1
    for one, turn in zip(candidates, turns, strict=True):
        assert abs(turn - one.share * max(turns)) <= 1 or turn == 1


def test_idle_addresses_are_begun_at_by_their_shares() -> None:
    candidates = [Loaded(0, share=share) for share in shares([3, 1])]
    places = ring(candidates)
    begun = [least_loaded(places, start) for start in range(400)]
    assert sum(1 for each in begun if each is candidates[0]) == 300


def test_busy_addresses_are_kept_busy_by_their_shares() -> None:
    candidates = [Loaded(0, share=share) for share in shares([3, 1])]
    places = ring(candidates)
    for start in range(400):
        least_loaded(places, start).active += 1
    assert [each.active for each in candidates] == [300, 100]


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.001, 1e6))
def test_a_slow_start_only_grows_and_ends_whole(age: float, later: float, window: float) -> None:
    weight = slow_start_weight(age, window)
    assert LEAST_WEIGHT <= weight <= slow_start_weight(age + later, window) <= 1.0
    assert slow_start_weight(window, window) == 1.0


# --- health -------------------------------------------------------------------------------------------

checks = st.builds(HealthCheck, healthy=st.integers(1, 5), unhealthy=st.integers(1, 5))


@given(st.lists(st.booleans(), min_size=1, max_size=40), checks)
def test_health_turns_after_as_many_results_in_a_row_as_asked(results: list[bool], check: HealthCheck) -> None:
    health = UNCHECKED
    for number, passed in enumerate(results):
        before, health = health, after(health, passed, check)
        wanted = check.healthy if passed else check.unhealthy
        in_a_row = results[max(0, number + 1 - wanted) : number + 1]
        if number == 0:
            assert health.in_service is passed  # the first decides
        elif health.in_service is not before.in_service:
            assert in_a_row == [passed] * wanted
        elif len(in_a_row) == wanted and all(each is passed for each in in_a_row):
            assert health.in_service is passed
        assert health.against < max(check.healthy, check.unhealthy)


def test_one_failure_among_successes_changes_nothing() -> None:
    check, health = HealthCheck(unhealthy=2), Health(True, 0, True)
    for passed in (False, True, False, True):
        health = after(health, passed, check)
        assert health.in_service


# --- outliers -----------------------------------------------------------------------------------------

showings = st.builds(Shown, *[st.integers(0, 200)] * 4)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 100))
def test_ejections_never_take_more_than_their_share(ejected: int, addresses: int, share: int) -> None:
    if may_eject(ejected, addresses, share):
        assert (ejected + 1) / addresses <= share / 100 + 1e-9
    assert not may_eject(0, 1, 99)  # the last one stays


@given(showings)
def test_an_outlier_that_is_turned_off_ejects_nobody(shown: Shown) -> None:
    assert verdict(shown, Outlier(consecutive_failures=0)) == ""


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_answers_of_5xx_eject_nobody_unless_asked_for(errors: int, answers: int, bad: int) -> None:
    assert verdict(Shown(0, errors, answers, bad), Outlier()) == ""


@pytest.mark.parametrize(
    ("shown", "outlier", "said"),
    [
        (Shown(failures=5), Outlier(), "5 failures in a row"),
        (Shown(failures=4), Outlier(), ""),
        (Shown(errors=3), Outlier(consecutive_5xx=3), "3 answers of 5xx in a row"),
        (Shown(answers=100, bad=50), Outlier(failure_percent=50), "50 % of 100 answers were bad"),
        (Shown(answers=100, bad=49), Outlier(failure_percent=50), ""),
        (Shown(answers=49, bad=49), Outlier(failure_percent=50), ""),
    ],
)
def test_each_ground_has_its_bound(shown: Shown, outlier: Outlier, said: str) -> None:
    assert verdict(shown, outlier) == said


@given(st.integers(1, 1000), st.floats(0.1, 1000), st.floats(0.1, 1000))
def test_ejections_grow_up_to_the_longest(times: int, first: float, longest: float) -> None:
    outlier = replace(Outlier(), ejection=first, longest=longest)
    assert first <= ejection_seconds(times, outlier) <= max(first, longest)
    assert ejection_seconds(times, outlier) <= ejection_seconds(times + 1, outlier)


# --- retries ------------------------------------------------------------------------------------------


@given(st.sampled_from(Failure), st.booleans(), st.booleans())
def test_what_may_have_had_an_effect_is_never_repeated(failure: Failure, safe: bool, retry_503: bool) -> None:
    repeatable = is_repeatable(failure, safe=safe, retry_503=retry_503)
    if failure is not Failure.UNREACHED and not safe:
        assert not repeatable
    if failure is Failure.UNAVAILABLE:
        assert repeatable is (safe and retry_503)
    if failure is Failure.FINAL:
        assert not repeatable


@given(
    st.sampled_from(Failure), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 100), st.integers(0, 100)
)
def test_repeats_stay_within_their_budget(
    failure: Failure, retrying: int, active: int, percent: int, least: int
) -> None:
    if failure is Failure.UNREACHED:
        assert has_budget(failure, retrying, active, Retries(percent=percent, least=least))
    elif has_budget(failure, retrying, active, Retries(percent=percent, least=least)):
        assert retrying + 1 <= max(least, active * percent / 100)
    elif retrying < least:
        raise AssertionError("the least is always allowed")


# --- the breaker --------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_the_breaker_holds_its_bounds(requests: int, pending: int, active: int, waiting: int, dials: bool) -> None:
    why = why_open(Breaker(requests, pending), active=active, pending=waiting, dials=dials)
    if not why:
        assert requests == 0 or active + waiting + 1 <= requests
        assert pending == 0 or not dials or waiting + 1 <= pending
    assert why_open(Breaker(), active=active, pending=waiting, dials=dials) == ""

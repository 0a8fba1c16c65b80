"""Which routes are slow: those that were measured so, until they have been quick for long enough."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.pace import CALM, MAX_CALM, MAX_ROUTES, Pace

BUDGET, QUICK, SLOW = 0.002, 0.001, 0.003


def slowed(pace: Pace, route: str) -> None:
    """Two in a row are no chance."""
    pace.note(route, SLOW)
    pace.note(route, SLOW)


def calm(pace: Pace, route: str) -> int:
    """How many quick evaluations it takes until `route` is quick again."""
    count = 0
    while pace.is_slow(route):
        pace.note(route, QUICK)
        count += 1
    return count


def test_a_route_above_the_budget_is_slow_and_no_other() -> None:
    pace = Pace(BUDGET)
    assert (pace.note("a", BUDGET), pace.is_slow("a")) == (False, False)
    assert [pace.note("a", SLOW) for _ in range(3)] == [False, True, False]  # by chance; slow; told once
    assert (pace.is_slow("a"), pace.is_slow("b"), pace.slow_routes) == (True, False, ("a",))


def test_it_is_quick_again_after_as_many_as_asked_for_in_a_row() -> None:
    pace = Pace(BUDGET)
    slowed(pace, "a")
    for _ in range(CALM - 1):
        pace.note("a", QUICK)
    pace.note("a", SLOW)
    assert calm(pace, "a") == CALM


def test_each_relapse_asks_for_twice_as_many_up_to_a_bound() -> None:
    """A caller that knows a slow question cannot ask it on the loop every so often."""
    pace, asked = Pace(BUDGET), []
    for _ in range(10):
        slowed(pace, "a")
        asked.append(calm(pace, "a"))
    assert asked[:4] == [CALM, 2 * CALM, 4 * CALM, 8 * CALM]
    assert max(asked) == asked[-1] == MAX_CALM


@given(st.lists(st.integers(0, 2 * MAX_ROUTES), max_size=50))
@settings(max_examples=20, deadline=None)
def test_what_is_remembered_is_bounded(routes: list[int]) -> None:
    pace = Pace(BUDGET)
    for route in [*range(MAX_ROUTES), *routes]:
        slowed(pace, str(route))
        assert pace.is_slow(str(route))
    assert len(pace.slow_routes) <= MAX_ROUTES


def test_a_lone_slow_one_is_chance_and_two_are_none() -> None:
    pace = Pace(BUDGET)
    for _ in range(5):
        pace.note("a", SLOW)
        for _ in range(CALM):
            pace.note("a", QUICK)
    assert not pace.is_slow("a")
    pace.note("a", SLOW)
    for _ in range(CALM - 1):
        pace.note("a", QUICK)
    assert pace.note("a", SLOW)

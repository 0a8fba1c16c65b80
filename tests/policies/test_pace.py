"""Which routes are slow: those that were measured so, until they have been quick for long enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.pace import CALM, MAX_CALM, MAX_ROUTES, Pace

BUDGET, QUICK, SLOW = 0.002, 0.001, 0.003


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
    assert (pace.note("a", SLOW), pace.note("a", SLOW)) == (True, False)  # told once
    assert (pace.is_slow("a"), pace.is_slow("b"), pace.slow_routes) == (True, False, ("a",))


def test_it_is_quick_again_after_as_many_as_asked_for_in_a_row() -> None:
    pace = Pace(BUDGET)
    pace.note("a", SLOW)
    for _ in range(CALM - 1):
        pace.note("a", QUICK)
    pace.note("a", SLOW)
    assert calm(pace, "a") == CALM


def test_each_relapse_asks_for_twice_as_many_up_to_a_bound() -> None:
    """A caller that knows a slow question cannot ask it on the loop every so often."""
    pace, asked = Pace(BUDGET), []
    for _ in range(10):
        pace.note("a", SLOW)
        asked.append(calm(pace, "a"))
    assert asked[:4] == [CALM, 2 * CALM, 4 * CALM, 8 * CALM]
    assert max(asked) == asked[-1] == MAX_CALM


@given(st.lists(st.integers(0, 2 * MAX_ROUTES), max_size=50))
def test_what_is_remembered_is_bounded(routes: list[int]) -> None:
    pace = Pace(BUDGET)
    for route in [*range(MAX_ROUTES), *routes]:
        pace.note(str(route), SLOW)
        assert pace.is_slow(str(route))
    assert len(pace.slow_routes) <= MAX_ROUTES

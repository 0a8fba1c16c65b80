"""Who has to go when too much is held in buffers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.memory import over_budget

_HELD = st.lists(st.integers(0, 1000), max_size=40)


def test_one_that_holds_too_much_goes_whatever_the_others_hold() -> None:
    assert over_budget([("a", 10, 10), ("b", 11, 10), ("c", 0, 10), ("d", 11, 20)], 1000) == ["b"]


def test_together_the_largest_go_first() -> None:
    held = [("a", 10, 100), ("b", 30, 100), ("c", 20, 100), ("d", 5, 100)]
    assert over_budget(held, 40) == ["b"]
    assert over_budget(held, 15) == ["b", "c"]


@given(_HELD, st.integers(0, 1000), st.integers(0, 5000))
def test_what_stays_is_within_both_bounds_and_nobody_goes_for_nothing(sizes: list[int], each: int, total: int) -> None:
    going = over_budget([(index, size, each) for index, size in enumerate(sizes)], total)
    staying = [size for index, size in enumerate(sizes) if index not in set(going)]
    assert len(set(going)) == len(going)
    assert all(size <= each for size in staying)
    assert sum(staying) <= total
    within = [index for index in going if sizes[index] <= each]
    if within:  # the last that went for the sum was needed
        assert sum(staying) + sizes[within[-1]] > total
    assert all(sizes[index] > 0 for index in going)

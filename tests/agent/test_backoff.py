"""When lost tunnels are dialled again: one node soon, ten thousand not together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.backoff import LONGEST, SHORTEST, pause, spread
from benchmarks.herd import Gateway, come_back

NODES = 10_000
DRAWS = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10**9), DRAWS)
def test_a_pause_is_within_its_bounds(failures: int, draw: float) -> None:
    assert SHORTEST <= pause(failures, draw) <= LONGEST


@given(st.integers(0, 20), DRAWS)
def test_windows_grow_and_every_draw_counts(failures: int, draw: float) -> None:
    assert pause(failures + 1, draw) >= pause(failures, draw)
    assert pause(failures, 0.0) == SHORTEST
    assert pause(failures, 0.999) > pause(failures, 0.5) > pause(failures, 0.001)


@given(st.floats(0.1, 3600), DRAWS)
def test_signs_of_life_are_asked_for_around_their_time(seconds: float, draw: float) -> None:
    assert 0.74 * seconds <= spread(seconds, draw) <= 1.26 * seconds


def test_a_gateway_that_is_back_within_a_second_has_its_node_within_five() -> None:
    after = sorted(come_back(1, Gateway(back=1.0), seed=seed).last for seed in range(1000))
    assert after[950] < 5
    assert after[500] < 2


def test_ten_thousand_nodes_find_a_gateway_that_never_stands_still() -> None:
    for back in (0.0, 2.0, 60.0):
        found = come_back(NODES, Gateway(back))
        ideal = NODES / Gateway().per_second
        busy = found.up[int(back) + 1 : int(back + 0.85 * ideal)]
        assert min(busy) >= 0.99 * Gateway().per_second  # no handshake is lost while most still wait
        assert found.last - back < 2 * ideal
        assert sum(found.up) == NODES


def test_arrivals_are_spread() -> None:
    assert max(come_back(NODES, Gateway(0.0)).arrivals) < 0.75 * NODES
    assert max(come_back(NODES, Gateway(60.0)).arrivals) < 0.1 * NODES
    together = come_back(NODES, Gateway(60.0), wait=lambda failures, draw: min(LONGEST, 2.0**failures))
    assert max(together.arrivals) > 0.5 * NODES  # what doubling without lots would do

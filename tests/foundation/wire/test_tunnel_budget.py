"""What frames cost: an honest side never meets the bound, however small its messages, and a flood always does."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from foundation.bucket import BURST_SECONDS
from foundation.wire.tunnel_budget import (
    DATA_COST,
    FRAME_WORTH,
    FRAMES_OF_NODE,
    WORTHWHILE,
    OwnSpending,
    Spending,
)

RATE = FRAMES_OF_NODE


def spend(spending: Spending, octets: int, back: int = 0) -> None:
    """A frame of so many octets, with so many the other way."""
    spending.cost += DATA_COST
    spending.carried += octets + back


def test_a_frame_with_enough_in_it_has_paid_for_itself() -> None:
    assert (WORTHWHILE - 1) / FRAME_WORTH < DATA_COST <= WORTHWHILE / FRAME_WORTH


def interactive() -> Iterator[tuple[str, float, int, int]]:
    """Messages a second over all streams of a node's tunnel, their octets, and those of their answers."""
    yield "keystrokes of 200 shells, as ssh sends them", 200 * 20, 36, 36
    yield "64 octets there and back, far more often than a node could", 1_000_000, 64, 64
    yield "bare keystrokes with an echo", 8_000, 1, 1
    yield "samples of a sensor, without an answer", 10_000, 8, 0
    yield "readings that are longer, without an answer", 25_000, 64, 0
    yield "anything as long as a short line, at any rate", 1_000_000, WORTHWHILE, 0


def test_interactive_streams_never_meet_it() -> None:
    for name, rate, octets, back in interactive():
        spending, now = Spending(RATE, 0.0), 0.0
        for _ in range(200_000):
            now += 1 / rate
            spend(spending, octets, back)
            assert spending.is_borne(now), name


@given(st.integers(0, 60), st.integers(1, 400))
def test_a_flood_of_crumbs_meets_it_after_what_may_come_at_once(octets: int, batch: int) -> None:
    spending, frames = Spending(RATE, 0.0), 0
    bound = RATE * BURST_SECONDS / (DATA_COST - octets / FRAME_WORTH)
    while spending.is_borne(0.0):
        for _ in range(batch):
            spend(spending, octets)
        frames += batch
    assert bound - 1 <= frames <= bound + batch + 1


Turn = tuple[float, int, int, int, float]
turns: st.SearchStrategy[list[Turn]] = st.lists(
    st.tuples(
        st.floats(0, 3),  # seconds until it
        st.integers(0, 20_000),  # frames that somebody wants to send
        st.integers(0, WORTHWHILE),  # octets in each
        st.integers(0, 20_000),  # octets that come back
        st.floats(0, BURST_SECONDS),  # for how long the network holds it up
    ),
    max_size=30,
)


@given(turns)
def test_who_reckons_what_it_sends_is_borne_though_the_network_stalls(
    sent: list[Turn],
) -> None:
    """Bytes keep their order and may be held up for ten seconds, then come at once."""
    here, there = OwnSpending(RATE, 0.0), Spending(RATE, 0.0)
    now = arrived = 0.0
    for pause, frames, octets, back, delay in sent:
        now += pause
        arrived = max(arrived, now + delay)
        arrived = min(arrived, now + BURST_SECONDS)
        here.carried += back  # it came before what we say now, and left earlier still
        there.carried += back
        for _ in range(frames):
            if not here.allows(now, now):
                break
            spend(here, octets)
            spend(there, octets)
            assert there.is_borne(arrived)


def test_nobody_counts_on_time_in_which_nothing_was_heard() -> None:
    spending = OwnSpending(RATE, 0.0)
    spending.cost = RATE * BURST_SECONDS
    assert not spending.allows(1_000.0, heard_at=-5.0)
    assert not spending.allows(1_000.0, heard_at=-5.0)
    assert spending.allows(1_000.0, heard_at=10.0)


def test_a_new_stream_may_use_more_than_small_messages_may() -> None:
    spending = OwnSpending(RATE, 0.0)
    spending.cost = RATE / 2 * BURST_SECONDS + 1
    assert not spending.allows(0.0, 0.0)
    assert spending.allows(0.0, 0.0, needed=True)
    spending.cost = RATE / 2 * BURST_SECONDS
    assert not spending.allows(0.0, 0.0, needed=True)

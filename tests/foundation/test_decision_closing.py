"""What is done with full segments takes a share of a core, unless there is haste."""

from __future__ import annotations

import pytest

from foundation.decisionlog.closing import BUSY_SHARE, PIECE_SECONDS, Breather


class Time:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def work(pieces: int, seconds: float, *, hurried: bool = False) -> Time:
    time = Time()
    breathe = Breather(lambda: hurried, lambda: time.now, time.sleep)
    for _ in range(pieces):
        time.now += seconds
        breathe()
    return time


@pytest.mark.parametrize("seconds", [PIECE_SECONDS / 10, PIECE_SECONDS, 10 * PIECE_SECONDS])
def test_it_takes_its_share_and_no_more(seconds: float) -> None:
    worked = 1000 * seconds
    assert worked / (worked + work(1000, seconds).slept) == pytest.approx(BUSY_SHARE, rel=0.01)


def test_a_short_piece_of_work_is_done_at_once() -> None:
    assert work(1, PIECE_SECONDS / 2).slept == 0


def test_haste_knows_no_rest() -> None:
    assert work(1000, PIECE_SECONDS, hurried=True).slept == 0

"""A figure says itself whether its goal is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import figure
from benchmarks.figure import against, at_most, beside
from benchmarks.generator import Outcome, median


def test_a_bound_is_reached_at_the_bound() -> None:
    assert at_most("f", 2.0, "s", 2.0, "c").reached
    assert not at_most("f", 2.001, "s", 2.0, "c").reached


def test_a_peer_is_matched_by_the_ratio() -> None:
    assert against("f", 100, "r/s", "p", 100, 1.0, "c").reached
    short = against("f", 99, "r/s", "p", 100, 1.0, "c")
    assert (short.reached, short.ratio, short.goal) == (False, 0.99, "at least 1x")


def test_a_figure_without_a_goal_has_none() -> None:
    alone = beside("f", 10, "ms", "p", 20, "c")
    assert (alone.goal, alone.reached, alone.ratio) == ("", True, 0.5)


def test_what_is_written_replaces_the_same_figure_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "LATEST", tmp_path / "results" / "latest.json")
    figure.write([at_most("b", 1, "s", 2, "c"), at_most("a", 1, "s", 2, "c")])
    figure.write([at_most("b", 3, "s", 2, "c")])
    assert [(row["figure"], row["value"]) for row in figure._read()] == [("a", 1), ("b", 3)]


def test_the_median_is_of_ratios_and_not_of_either_side() -> None:
    pairs = [(Outcome(own, 1, 1), Outcome(peer, 1, 1)) for own, peer in ((100, 200), (900, 300), (400, 200))]
    assert median(pairs) == pairs[2]

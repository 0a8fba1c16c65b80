"""A figure says itself whether its goal is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import figure
from benchmarks.figure import Failure, Pairs, alone, at_most


def test_a_bound_is_reached_at_the_bound() -> None:
    assert at_most("f", 2.0, "s", 2.0, "c").reached
    assert not at_most("f", 2.001, "s", 2.0, "c").reached


def test_a_peer_is_matched_by_the_ratio() -> None:
    assert Pairs([100], [100], "p", least=1.0).figure("f", "r/s", "c").reached
    short = Pairs([99], [100], "p", least=1.0).figure("f", "r/s", "c")
    assert (short.reached, short.ratio, short.goal) == (False, 0.99, "at least 1x")
    assert not Pairs([131], [100], "p", most=1.3).figure("f", "us", "c").reached


def test_a_figure_without_a_goal_has_none() -> None:
    found = Pairs([10], [20], "p").figure("f", "ms", "c")
    assert (found.goal, found.reached, found.ratio) == ("", True, 0.5)
    assert (alone("f", 1, "ms", "c").goal, alone("f", 1, "ms", "c").reached) == ("", True)


def test_the_median_is_of_ratios_and_not_of_either_side() -> None:
    found = Pairs([100, 900, 400], [200, 300, 200], "p").figure("f", "r/s", "c")
    assert (found.value, found.peer_value, found.ratio, found.spread) == (400, 200, 2.0, (0.5, 3.0))
    assert Pairs([100, 900, 200], [50, 300, 200], "p").figure("f", "r/s", "c").ratio == 2.0


def test_what_is_written_replaces_the_same_figure_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "LATEST", tmp_path / "results" / "latest.json")
    figure.keep([at_most("b", 1, "s", 2, "c"), at_most("a", 1, "s", 2, "c")])
    figure.keep([at_most("b", 3, "s", 2, "c")])
    assert [(row["figure"], row["value"]) for row in figure._read()] == [("a", 1), ("b", 3)]


def test_what_failed_leaves_no_old_figure_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "LATEST", tmp_path / "results" / "latest.json")
    figure.keep([at_most("b", 1, "s", 2, "c"), at_most("a", 1, "s", 2, "c")])
    figure.keep([Failure("a", "it broke")])
    assert [row["figure"] for row in figure._read()] == ["b"]

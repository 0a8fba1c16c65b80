"""Growth is told from what memory does once it has settled."""

from __future__ import annotations

import pytest

from benchmarks.soak import growth

SECONDS = [float(i) for i in range(100)]


def test_memory_that_settles_does_not_grow() -> None:
    assert growth(SECONDS, [min(50.0 + i, 75.0) for i in range(100)], 100.0) == pytest.approx(0.0)


def test_a_leak_is_told_for_the_whole_time() -> None:
    assert growth(SECONDS, [200.0 + 0.02 * i for i in range(100)], 100.0) == pytest.approx(1.0, rel=0.02)


def test_too_few_readings_tell_nothing() -> None:
    with pytest.raises(RuntimeError):
        growth([1.0, 2.0], [1.0, 1.0], 10.0)

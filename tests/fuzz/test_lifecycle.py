"""A short run of each fuzz target of policy's life; tests/support/fuzzing.py tells how to make a long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.lifecycle_targets import SEEDS, TARGETS, survives


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    command = [sys.executable, "-m", "tests.support.fuzzing", "tests.fuzz.lifecycle_targets", name, "1"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-4000:].decode("utf-8", "replace")


def test_every_target_has_seeds_and_accepts_them_but_the_unsigned() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    assert [name for name in TARGETS for seed in SEEDS[name] if not survives(name, seed)] == ["unsigned"]

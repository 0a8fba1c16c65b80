"""A short run of each fuzz target of foundation; tests/support/fuzzing.py tells how to make a long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.foundation_targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    command = [sys.executable, "-m", "tests.support.fuzzing", "tests.fuzz.foundation_targets", name, "1"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-4000:].decode("utf-8", "replace")


def test_the_runner_tells_a_crash(tmp_path: Path) -> None:
    (tmp_path / "bad_targets.py").write_text("TARGETS = {'bad': lambda raw: 1 / 0}\nSEEDS = {'bad': [b'seed']}\n")
    command = [sys.executable, "-m", "tests.support.fuzzing", "bad_targets", "bad", "1"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode != 0
    assert b"ZeroDivisionError" in done.stdout + done.stderr


def test_every_target_has_a_seed_that_reaches_its_end() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    for name in TARGETS.keys() - {"fields"}:
        for seed in SEEDS[name]:
            TARGETS[name](seed)

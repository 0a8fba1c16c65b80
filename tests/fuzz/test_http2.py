"""A short run of each fuzz target of HTTP/2; tests/support/fuzzing.py tells how to make a long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.http2_targets import EXACT, SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    command = [sys.executable, "-m", "tests.support.fuzzing", "tests.fuzz.http2_targets", name, "2"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-4000:].decode("utf-8", "replace")


def test_every_seed_reaches_the_end_of_its_target() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    for name, target in EXACT.items():
        for seed in SEEDS[name]:
            target(seed)

"""A short run of each fuzz target of pki/tpm; tests/support/fuzzing.py tells how to make a long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.tpm_targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    command = [sys.executable, "-m", "tests.support.fuzzing", "tests.fuzz.tpm_targets", name, "1"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-4000:].decode("utf-8", "replace")


def test_every_target_has_a_seed_that_reaches_its_end() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    for name, seeds in SEEDS.items():
        for seed in seeds:
            TARGETS[name](seed)

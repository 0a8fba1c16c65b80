"""Drives a fuzz target: by coverage with atheris where it is installed, otherwise by plain mutation of its seeds.

A target takes bytes and may raise nothing but `Fault`. A module of targets has two mappings by name: `TARGETS` and
`SEEDS`. Run one as `python -m tests.support.fuzzing tests.fuzz.<module> <target> [seconds]`.
"""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from foundation.faults import Fault

try:
    import atheris
except ImportError:  # it has no wheel for the newest Python
    atheris = None

Target = Callable[[bytes], None]
MAX_BYTES = 8192
PACKAGES = ["foundation", "pki", "policies", "gateway", "agent"]


def main(module: str, name: str, seconds: str = "2") -> None:
    """Fuzz one target of a module for so many seconds; a finding ends the process with another code than 0."""
    with (
        nullcontext() if atheris is None else atheris.instrument_imports(include=PACKAGES, enable_loader_override=False)
    ):
        found = importlib.import_module(module)
    run = _mutate if atheris is None else _by_coverage
    run(_only_faults(found.TARGETS[name]), found.SEEDS[name], float(seconds))


def _only_faults(target: Target) -> Target:
    def run(raw: bytes) -> None:
        with suppress(Fault):
            target(raw)

    return run


def _by_coverage(target: Target, seeds: Sequence[bytes], seconds: float) -> None:
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(seeds):
            Path(corpus, str(index)).write_bytes(seed)
        limits = [
            f"-max_total_time={max(1, int(seconds))}",
            f"-max_len={MAX_BYTES}",
            "-rss_limit_mb=1024",
            "-timeout=5",
        ]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={corpus}/", corpus], target)
        atheris.Fuzz()


def _mutate(target: Target, seeds: Sequence[bytes], seconds: float) -> None:
    chance = random.Random(1)  # repeatable, not secret
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        raw = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(8)):
            at = chance.randrange(len(raw) + 1)
            raw[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        target(bytes(raw))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs the benchmarks named, or all but the long ones, prints a table and writes benchmarks/results/latest.json.

Each benchmark is a module of this package with `figures(short) -> Iterator[Figure | Failure]`. What is measured is kept
when it is measured; with `--short`, which only tries a benchmark out, nothing is. Exit code 0 whatever the figures are:
one that falls short is reported as it is. Exit code 1 when a figure could not be measured.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator

from benchmarks.figure import Failure, Figure, keep, show
from benchmarks.processes import ENVIRONMENT

BENCHMARKS = (
    "decision",
    "framing",
    "enrolment",
    "attestation",
    "agent",
    "forward",
    "connections",
    "cut_revocation",
    "cut_revision",
    "broker_throughput",
    "broker_hops",
    "broker_rtt",
    "broker_tunnels",
    "broker_cut",
    "broker_cut_gateways",
)
LONG = ("explain", "soak")
OPEN_FILES = 65_536


def main() -> None:
    os.environ["PATH"] = ENVIRONMENT["PATH"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        default=BENCHMARKS,
        help=f"of {', '.join(BENCHMARKS + LONG)}; without names all but {', '.join(LONG)}",
    )
    parser.add_argument("--short", action="store_true", help="fewer repetitions, nothing written: to try a benchmark")
    given = parser.parse_args()
    _allow_open_files()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started is stopped
    found: list[Figure | Failure] = []
    for number, name in enumerate(given.names, 1):
        print(f"{name} ({number} of {len(given.names)})", file=sys.stderr, flush=True)
        begun = time.monotonic()
        for each in _measured(name, given.short):
            if not given.short:
                keep([each])
            found.append(each)
        print(f"  {name} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    show(found)
    raise SystemExit(any(isinstance(each, Failure) for each in found))


def _measured(name: str, short: bool) -> Iterator[Figure | Failure]:
    """The figures of one benchmark. One that breaks says so, and is no reason to leave out the others."""
    try:
        yield from importlib.import_module(f"benchmarks.{name}").figures(short)
    except Exception as error:
        traceback.print_exc()
        yield Failure(name, str(error))


def _allow_open_files() -> None:
    """For 10,000 streams a gateway has 20,000 sockets. What we start inherits the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(most, OPEN_FILES)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()

"""Runs every benchmark, or those named, prints a table and writes benchmarks/results/latest.json.

Each benchmark is a module of this package with `figures() -> list[Figure]`. Exit code 0 whatever the figures are: a
figure that falls short is reported as it is.
"""

from __future__ import annotations

import argparse
import importlib

from benchmarks.figure import show, write

BENCHMARKS = ("decision", "enrolment", "forward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=BENCHMARKS, help=f"of {', '.join(BENCHMARKS)}; all when none is named"
    )
    figures = []
    for name in parser.parse_args().names:
        measured = importlib.import_module(f"benchmarks.{name}").figures()
        write(measured)
        figures += measured
    show(figures)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.counted FILE serve …`: sallyport whose workers run below cProfile, each from a SIGUSR1 on, so
that its start is not counted, until the next one, which writes the profile to FILE."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from socket import socket

from benchmarks.processes import ROOT
from gateway.processes import Process
from sallyport import main

_start = Process.start


def _counted(module: str, handed_down: Sequence[socket | int]) -> Process:
    return _start("benchmarks.counted_worker", handed_down)


if __name__ == "__main__":
    os.environ |= {"SALLYPORT_COUNTED": sys.argv.pop(1), "PYTHONPATH": str(ROOT)}
    setattr(Process, "start", _counted)  # noqa: B010  # mypy knows it as a method
    main()

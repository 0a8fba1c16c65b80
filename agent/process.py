"""The process that `sallyport agent run` becomes.

An agent lives long and has little memory to spare: it begins anew in a process image (the same process, by execve(2))
that never imported what a command line needs, and whose heap has two arenas, not eight for each processor: what threads
free is used again, or goes back to the machine.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent.configuration import RunSettings
from agent.run import run
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.logs import configure_logging


def main() -> None:
    """The settings' file and the log's level are the arguments. Exit codes as `sallyport`'s."""
    config, log_level = Path(sys.argv[1]), sys.argv[2]
    configure_logging(log_level)
    try:
        work = run(RunSettings.load(config), lambda: RunSettings.load(config), SystemClock())
        with asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(work)
    except Fault as fault:
        sys.stderr.write(f"sallyport: {fault}\n  what to do: {fault.reason.remedy}\n")
        raise SystemExit(1) from None


def _loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed."""
    try:
        import uvloop  # noqa: PLC0415  # not on every machine
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()

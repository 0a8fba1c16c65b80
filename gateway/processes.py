"""Starting a worker's process, and knowing when it has ended.

A worker is executed anew, never forked off: the main process has threads, and in its memory lie the authority's keys.
Nothing secret stands in its arguments or its environment; what it needs comes over its channel.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

_NOT_HANDED_DOWN = frozenset({"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"})


class Process:
    """A child by its process ID. `ended` is set, and `code` known, once it is gone and reaped."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self.ended = asyncio.Event()
        self._descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    @classmethod
    def start(cls, module: str, handed_down: Sequence[socket.socket | int]) -> Process:
        """Run `module` by this Python, with these descriptors open at the numbers that its arguments name. Raises
        `OSError`."""
        numbers = [each if isinstance(each, int) else each.fileno() for each in handed_down]
        words = [sys.executable, "-P", "-m", module, *map(str, numbers)]
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_DOWN}
        # Duplicating a descriptor onto itself is how it is kept open over exec.
        actions = [(os.POSIX_SPAWN_DUP2, number, number) for number in numbers]
        return cls(os.posix_spawn(sys.executable, words, environment, file_actions=actions))

    def kill(self) -> None:
        """It gets to do nothing more."""
        if self.code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _reap(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self.code = os.waitstatus_to_exitcode(status)
            self.ended.set()

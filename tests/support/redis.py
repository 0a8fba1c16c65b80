"""A real Redis server on a Unix socket, which tests may kill, stop and start again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from foundation.hotstate.settings import RedisSettings
from tests.support.processes import Running, wait_until

PROGRAM = shutil.which("redis-server") or "/usr/bin/redis-server"


class RedisServer:
    """`folder` holds its socket, and what it saves."""

    def __init__(self, folder: Path, *more: str) -> None:
        """`more` are further words of its command line, such as `--maxmemory 1mb`."""
        self.folder = folder
        self.socket = folder / "redis.sock"
        self._more = more
        self._running: Running | None = None
        self.start()

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(path=self.socket)

    def raw(self) -> Redis:
        """A client of its own, beside ours."""
        return Redis(unix_socket_path=str(self.socket))

    def start(self) -> None:
        words = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.folder)]
        self._running = Running([PROGRAM, *words, *self._more], self.folder / "redis.log")
        self._running.until(self._answers, "Redis answers")

    def kill(self) -> None:
        """SIGKILL; its connections break."""
        if self._running is not None:
            self._running.kill()
            self._running = None

    def freeze(self) -> None:
        """It keeps its connections, and says nothing."""
        assert self._running is not None
        self._running.signal(signal.SIGSTOP)
        pid = self._running.pid
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{pid}/status").read_text(), "Redis stands still")

    def thaw(self) -> None:
        assert self._running is not None
        self._running.signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with self.raw() as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False


@contextlib.contextmanager
def redis_server(*more: str) -> Iterator[RedisServer]:
    """A server that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="redis") as folder:  # pytest's own are too long for a Unix socket
        server = RedisServer(Path(folder), *more)
        try:
            yield server
        finally:
            server.kill()

"""A real PostgreSQL for tests: made anew in a folder of its own, at a Unix socket alone, gone with the block."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import Running

_USER = "postgres"  # PostgreSQL refuses to be root; the package makes this user
# Nothing of this has to survive a loss of power.
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_EMPTY = "SET lock_timeout = '10s'; DROP SCHEMA public CASCADE; CREATE SCHEMA public"


class PostgresqlServer:
    """One server with one database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._words: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        self._run("initdb", "--pgdata", f"{folder}/data", "--username", _USER, "--auth", "trust", "--no-sync")
        words = ["-D", f"{folder}/data", "-k", str(folder), "-c", "listen_addresses=", "-c", "max_connections=64"]
        for setting in _FAST:
            words += ["-c", setting]
        self._running = Running([*self._words, _program("postgres"), *words], folder / "log")
        self._running.until(self._answers, "PostgreSQL answers")

    @property
    def url(self) -> str:
        """For `StorageSettings`."""
        return f"postgresql+asyncpg://{_USER}@/{_USER}?host={self._folder}"

    def empty(self) -> None:
        """Take everything out of the database. Nobody may be connected."""
        self._run("psql", "--host", str(self._folder), "--username", _USER, "--quiet", "--command", _EMPTY)

    def stop(self) -> None:
        self._running.signal(signal.SIGINT)  # its fast shutdown: connections are cut
        self._running.wait()

    def _answers(self) -> bool:
        words = [_program("pg_isready"), "--quiet", "--host", str(self._folder)]
        return subprocess.run(words, check=False).returncode == 0

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [*self._words, _program(program), *words], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"


def _program(name: str) -> str:
    """Debian keeps the server's programs apart, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    path = str(found[-1]) if found else shutil.which(name)
    assert path, f"{name} is missing: make setup"
    return path


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that ends with the block."""
    # pytest's own folders are too long for a Unix socket, and closed to others than root.
    with tempfile.TemporaryDirectory(prefix="postgresql") as folder:
        server = PostgresqlServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()

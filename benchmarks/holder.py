"""Connections and streams held open (benchmarks/load, `hold`), and what is seen of their end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.generator import Generator
from benchmarks.processes import ENVIRONMENT, Subject, end_with_parent


@dataclass(frozen=True, slots=True)
class Closed:
    """When the connections of a group were closed: nanoseconds since the Unix epoch."""

    opened: int
    closed: int
    first: int = 0
    median: int = 0
    p99: int = 0
    last: int = 0


class Holder:
    """One process that holds groups of connections to one subject."""

    command = "hold"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def to(cls, generator: Generator, subject: Subject) -> Iterator[Self]:
        """For as long as the block lasts; then all connections are closed."""
        words = [str(generator.binary), cls.command, *generator.to(subject)]
        with subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            preexec_fn=end_with_parent,  # noqa: PLW1509  # no threads here before the program starts
        ) as process:
            try:
                yield cls(process)
            finally:
                process.kill()

    def open(self, group: str, client: str, count: int, path: str) -> float:
        """Open `count` connections of `client` (`*`: of each in turn), each of which asks for `path`; how many seconds
        that took. Raises `RuntimeError` when one of them fails."""
        return float(self._ask("open", group, client, count, path)["seconds"])

    def closed(self, group: str, seconds: int) -> Closed:
        """When all of them were closed by the server, or those that were after so many seconds."""
        return Closed(**self._ask("closed", group, seconds))

    def count(self, group: str) -> int:
        """How many of them are open."""
        return int(self._ask("count", group)["open"])

    def probe(self, connections: int, per_second: int, path: str) -> None:
        """Ask for `path` steadily from now on."""
        self._ask("probe", connections, per_second, path)

    def latencies(self, begin: int, end: int) -> Sequence[int]:
        """Microseconds of each request of the probe that was due in this time. Raises `RuntimeError` when one
        failed."""
        found = self._ask("latencies", begin, end)
        if found["errors"]:
            raise RuntimeError(f"a bystander's request failed: {found['errors'][0]}")
        return list(found["micros"])

    def _ask(self, *words: object) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        if "error" in found:
            raise RuntimeError(f"hold {' '.join(map(str, words))}: {found['error']}")
        return found

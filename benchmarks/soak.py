"""Ten minutes at 70 % of the highest load: nothing may grow, and nothing may fail.

The highest load is measured first. Then the fleet asks at 70 % of it, and the memory of Sallyport's process tree (PSS)
is read every few seconds. Before that it asks as fast as it can for a while: the decision cache, the pools and the
allocator then have what they keep, most of which the last, rarely asked paths of the fleet bring. What counts is the
straight line that fits the readings best, behind the first three minutes. `soak_memory_growth_percent` is how much
that line rises in ten minutes, of the memory in the middle of it. One request that is not answered with 200 fails it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import linear_regression, median

from benchmarks.field import say, stand
from benchmarks.figure import Figure, alone, at_most
from benchmarks.processes import Subject
from benchmarks.site import serving
from benchmarks.usage import pss

COMMAND = "python -m benchmarks.run soak"
SHARE, SECONDS, SETTLED, FILLING = 0.7, 600.0, 0.3, 180.0
GOAL_PERCENT = 1.0  # what the readings of a process that does nothing differ by
_EVERY = 5.0


def figures(short: bool) -> Iterator[Figure]:
    seconds = 60.0 if short else SECONDS
    with stand(peers=()) as stands, serving(stands.site) as served:
        own, generator = served.gateway, stands.generator
        highest = median(generator.offer(own, seconds=5.0, warmup=3.0).per_second for _ in range(3))
        generator.offer(own, seconds=5.0 if short else FILLING, warmup=0.0)
        say(f"{SHARE:.0%} of {highest:.0f}/s for {seconds:.0f} s")
        with Readings(own) as readings:
            outcome = generator.offer(own, seconds=seconds, warmup=0.0, rate=SHARE * highest)
        growth = readings.growth(seconds)
        yield at_most("soak_memory_growth_percent", growth, "%", GOAL_PERCENT, COMMAND)
        yield alone("soak_memory_mb", median(readings.megabytes), "MB", COMMAND, readings.megabytes)
        yield alone("soak_requests_per_second", outcome.per_second, "requests/s", COMMAND)
        yield alone("soak_p99_ms", outcome.p99, "ms", COMMAND)


@dataclass(slots=True)
class Readings:
    """Reads a subject's memory for as long as the block lasts."""

    subject: Subject
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Readings:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        begun = time.monotonic()
        while not self._ended.wait(_EVERY):
            self.seconds.append(time.monotonic() - begun)
            self.megabytes.append(pss(self.subject.pids) / 1e6)
            if len(self.seconds) % 12 == 0:
                say(f"after {self.seconds[-1]:.0f} s: {self.megabytes[-1]:.1f} MB")

    def growth(self, over: float) -> float:
        """Percent that the memory grows in `over` seconds."""
        return growth(self.seconds, self.megabytes, over)


def growth(seconds: Sequence[float], megabytes: Sequence[float], over: float) -> float:
    """Percent that the line through the settled readings rises in `over` seconds. Raises `RuntimeError` when there are
    too few readings to tell."""
    first = int(len(seconds) * SETTLED)
    settled = megabytes[first:]
    if len(settled) < 3:
        raise RuntimeError(f"{len(settled)} readings of memory are too few")
    slope, _ = linear_regression(seconds[first:], settled)
    return slope * over / median(settled) * 100

"""10,000 nodes that lost their gateway come back to it at once: how many arrive in each second, by `agent.backoff`.

A simulation in virtual time, without a socket: `python -m benchmarks.herd`. The gateway completes so many handshakes a
second, one after the other, and has so many under way; beyond that the oldest gives way, and its node tries again later
(`gateway.proxy.listener`).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.backoff import pause

Pause = Callable[[int, float], float]


@dataclass(frozen=True, slots=True)
class Gateway:
    """`back` is when it is there again, in seconds after its loss."""

    back: float = 0.0
    per_second: float = 300.0
    under_way: int = 1024


@dataclass
class Return:
    """Nodes' attempts that reached the gateway in each second, those that were up by the end of each second, and when
    the last was."""

    arrivals: list[int] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    last: float = 0.0

    def count(self, rows: list[int], at: float) -> None:
        second = int(at)
        rows.extend([0] * (second + 1 - len(rows)))
        rows[second] += 1


def come_back(nodes: int, gateway: Gateway, *, seed: int = 1, wait: Pause = pause) -> Return:
    """All of `nodes` lost the gateway at 0, and dial until each has its tunnel."""
    lots = random.Random(seed)  # noqa: S311  # a simulation that can be repeated
    found, queue = Return(), deque[int]()
    failures = [0] * nodes
    dials = [(wait(0, lots.random()), node) for node in range(nodes)]
    heapq.heapify(dials)
    free_at, standing = gateway.back, 0

    def fail(node: int, at: float) -> None:
        failures[node] += 1
        heapq.heappush(dials, (at + wait(failures[node], lots.random()), node))

    def complete_until(until: float) -> None:
        nonlocal free_at, standing
        while queue and free_at + 1 / gateway.per_second <= until:
            free_at += 1 / gateway.per_second
            queue.popleft()
            standing += 1
            found.count(found.up, free_at)
            found.last = free_at

    while standing < nodes:
        at, node = heapq.heappop(dials) if dials else (float("inf"), -1)
        complete_until(at)
        if node < 0:
            continue
        if at < gateway.back:
            fail(node, at)
            continue
        if not queue:
            free_at = max(free_at, at)
        found.count(found.arrivals, at)
        queue.append(node)
        if len(queue) > gateway.under_way:
            fail(queue.popleft(), at)
    return found


def main() -> None:
    for back in (0.0, 2.0, 60.0):
        found = come_back(10_000, Gateway(back))
        peak = max(found.arrivals)
        print(f"gone for {back:g} s: at most {peak} arrive in a second, all are up after {found.last:.0f} s")
        print("  arrivals by second:", " ".join(map(str, found.arrivals[int(back) : int(back) + 60])))
        print("  up by second:      ", " ".join(map(str, found.up[int(back) : int(back) + 60])))


if __name__ == "__main__":
    main()

"""How soon a revoked node's brokered streams are cut on three gateways that follow one authority.

Authority and gateways are processes of their own, and the gateways hear of a change by the authority's feed. 10,000
streams are open over the three. One more node opens a tunnel to each with ten streams over it, is revoked over the
authority's API, and all of them end, at both ends; and so again with another, 100 times. Time counts from when the API
was called to the last end on any gateway. `cut_three_gateways_p99_ms` is the 99th percentile of the hundred.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks.broker_cut import CALM_SECONDS, CLOSE_SECONDS, FEW
from benchmarks.field import say
from benchmarks.figure import Failure, Figure, alone, at_most
from benchmarks.gateways import Apart, apart
from benchmarks.streams import p99
from benchmarks.tunnels import fleet

COMMAND = "python -m benchmarks.run broker_cut_gateways"
NAME, GOAL_MS = "cut_three_gateways_p99_ms", 250.0
GATEWAYS, NODES, TARGETS, STAYING, EACH = 3, 200, 5, 3, 1_112


def figures(short: bool) -> Iterator[Figure | Failure]:
    count, each = (5, 100) if short else (100, EACH)
    targets = [f"edge-{NODES - 1 - number}" for number in range(TARGETS)]
    with fleet(NODES) as stands, apart(stands, GATEWAYS) as system:
        for holder in system.holders:
            for target in targets:
                holder.serve(target)
            for number in range(STAYING):
                holder.streams("stay", f"edge-{NODES - 1 - TARGETS - number}", each, targets)
        open_count = GATEWAYS * STAYING * each
        say(f"{open_count} streams are open over {GATEWAYS} gateways")
        cuts = [_cut(system, f"edge-{number}", targets) for number in range(count)]
        left = sum(holder.count("stay") for holder in system.holders)
    yield at_most(NAME, p99(cuts), "ms", GOAL_MS, COMMAND, cuts)
    yield alone("cut_three_gateways_p50_ms", median(cuts), "ms", COMMAND, cuts)
    if left != open_count:
        yield Failure(NAME, f"{open_count - left} streams of others were cut")


def _cut(system: Apart, name: str, targets: list[str]) -> float:
    """Milliseconds. Raises `RuntimeError` when a stream goes on."""
    for holder in system.holders:
        holder.streams(name, name, FEW, targets)
    time.sleep(CALM_SECONDS)
    begin = time.time_ns()
    system.authority.operator.post(f"/v1/inventory/node/{name}/revoke", {"reason": "key_compromise"})
    groups = (name, f"far:{name}")
    with ThreadPoolExecutor(len(system.holders)) as waiting:
        found = waiting.map(lambda holder: [holder.closed(each, CLOSE_SECONDS) for each in groups], system.holders)
        closed = [each for both in found for each in both]
    if any(each.closed != FEW or each.first < begin for each in closed):
        raise RuntimeError(f"not all streams were cut, or some before: {closed}")
    return (max(each.last for each in closed) - begin) / 1e6

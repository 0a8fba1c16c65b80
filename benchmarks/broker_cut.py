"""How soon the brokered streams of a revoked node are cut, and that it costs what it touches, not what is open.

10,000 streams are open between nodes: ten nodes have a thousand each, to ten others. One more node opens a tunnel with
ten streams to those, is revoked over the API, and the last of its streams ends at both ends: its own tunnel is gone,
the targets' stand and are told of each stream; and so again with another, 100 times. Time counts from when the API was
called, so that the call, the audit log and the commit are in it. `cut_one_gateway_p99_ms` is the 99th percentile of the
hundred.

The curve: medians for 1, 10, 100 and 1,000 streams of the revoked node among the 10,000, and 10 among none; and the CPU
that the process tree spends from the call to the last end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.field import say
from benchmarks.figure import Failure, Figure, alone, at_most
from benchmarks.site import Site, serving
from benchmarks.streams import p99
from benchmarks.tunnels import TunnelHolder, fleet
from benchmarks.usage import cpu

COMMAND = "python -m benchmarks.run broker_cut"
GOAL_MS = 100.0
NODES, TARGETS, STAYING, EACH = 300, 10, 10, 1_000
FEW, CURVE = 10, (1, 10, 100, 1_000)
CLOSE_SECONDS, CALM_SECONDS = 30, 0.2


@dataclass(frozen=True, slots=True)
class Cut:
    """Milliseconds from the API's call to the last end that either side saw, and of the gateway's CPU meanwhile."""

    called: float
    cpu: float


class Revoking:
    """Opens streams of one node after another and revokes it."""

    def __init__(self, site: Site, holder: TunnelHolder, targets: Sequence[str]) -> None:
        self._site = site
        self._holder = holder
        self._targets = targets
        self._next = 0

    def cut(self, streams: int) -> Cut:
        """Raises `RuntimeError` when a stream goes on."""
        name, holder = f"edge-{self._next}", self._holder
        self._next += 1
        holder.streams(name, name, streams, self._targets)
        time.sleep(CALM_SECONDS)
        spent, begin = cpu([self._site.pid]).total, time.time_ns()
        self._site.operator.post(f"/v1/inventory/node/{name}/revoke", {"reason": "key_compromise"})
        both = [holder.closed(group, CLOSE_SECONDS) for group in (name, f"far:{name}")]
        if any(each.closed != streams or each.first < begin for each in both):
            raise RuntimeError(f"of {streams} streams not all were cut, or some before: {both}")
        return Cut((max(each.last for each in both) - begin) / 1e6, (cpu([self._site.pid]).total - spent) * 1000)


def figures(short: bool) -> Iterator[Figure | Failure]:
    count, each, few = (5, 100, 2) if short else (100, EACH, 5)
    with (
        fleet(NODES) as stands,
        serving(stands.site) as site,
        TunnelHolder.to(stands.generator, site.gateway) as holder,
    ):
        targets = [f"edge-{NODES - 1 - number}" for number in range(TARGETS)]
        for target in targets:
            holder.serve(target)
        revoking = Revoking(site, holder, targets)
        nobody_else = [revoking.cut(FEW) for _ in range(few)]
        for number in range(STAYING):
            took = holder.streams("stay", f"edge-{NODES - 1 - TARGETS - number}", each, targets)
            say(f"{(number + 1) * each} streams are open; the last {each} took {took:.1f} s")
        cuts = [revoking.cut(FEW) for _ in range(count)]
        called = [cut.called for cut in cuts]
        yield at_most("cut_one_gateway_p99_ms", p99(called), "ms", GOAL_MS, COMMAND, called)
        yield from _point("cut_brokered_10_of_10", nobody_else)
        for streams in CURVE:
            yield from _point(f"cut_brokered_{streams}_of_10000", [revoking.cut(streams) for _ in range(few)])
        left = holder.count("stay")
        if left != STAYING * each:
            yield Failure("cut_one_gateway_p99_ms", f"{STAYING * each - left} streams of others were cut")


def _point(name: str, cuts: Sequence[Cut]) -> Iterator[Figure]:
    """The medians: milliseconds to the last end, and of CPU."""
    for what, found in (("p50", [cut.called for cut in cuts]), ("cpu", [cut.cpu for cut in cuts])):
        yield alone(f"{name}_{what}_ms", median(found), "ms", COMMAND, found)

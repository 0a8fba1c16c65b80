"""What tunnels cost a gateway that has thousands of them: memory, and how fast they come back.

10,000 tunnels of 1,000 nodes, ten each, with a full TLS 1.3 handshake and a client certificate for each, never resumed,
and both sides' HELLO. `tunnel_opens_per_s` is how many a second were open when all were, with the clients on the same
processors, 64 at a time. `idle_tunnels_10000_mb` is by how much the memory of the process tree (PSS) has grown then;
each tunnel asks for a sign of life every ten seconds meanwhile. What the kernel keeps for their sockets is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks.field import say
from benchmarks.figure import Failure, Figure, at_least, at_most
from benchmarks.processes import Subject
from benchmarks.site import serving
from benchmarks.tunnels import Fleet, TunnelHolder, fleet
from benchmarks.usage import pss

COMMAND = "python -m benchmarks.run broker_tunnels"
NODES, TUNNELS, WARM = 1_000, 10_000, 200
GOAL_MB, GOAL_RATE = 550.0, 300.0
SETTLE_SECONDS = 3.0


def figures(short: bool) -> Iterator[Figure | Failure]:
    nodes, tunnels = (50, 500) if short else (NODES, TUNNELS)
    with fleet(nodes) as stands, serving(stands.site) as served:
        grown, rate = _idle(stands, served.gateway, tunnels)
    yield at_most("idle_tunnels_10000_mb", grown * TUNNELS / tunnels / 1e6, "MB", GOAL_MB, COMMAND)
    yield at_least("tunnel_opens_per_s", rate, "tunnels/s", GOAL_RATE, COMMAND)


def _idle(stands: Fleet, gateway: Subject, tunnels: int) -> tuple[float, float]:
    """Bytes, and tunnels per second. Some that came and went before have had memory allocated that none of these
    owns."""
    with TunnelHolder.to(stands.generator, gateway) as warm:
        warm.idle("warm", "*", WARM)
    before = _settled(gateway)
    with TunnelHolder.to(stands.generator, gateway) as holder:
        seconds = holder.idle("idle", "*", tunnels)
        grown = _settled(gateway) - before
        if holder.count("idle") != tunnels:
            raise RuntimeError(f"the gateway closed {tunnels - holder.count('idle')} idle tunnels")
    say(f"{tunnels} tunnels in {seconds:.1f} s, {before / 1e6:.0f} MB before, {grown / 1e6:.0f} MB more")
    return grown, tunnels / seconds


def _settled(subject: Subject) -> float:
    """Bytes, after what is under way has ended."""
    found = []
    for _ in range(3):
        time.sleep(SETTLE_SECONDS / 3)
        found.append(pss(subject.pids))
    return median(found)

"""Sallyport with thousands of open streams: what `cut_revocation` and `cut_revision` stand on.

The upstream begins an answer and never ends it; two bytes come every 20 s, as of a watch. Each stream is a connection
of its own. Beside them a few bystanders ask for something small, 200 times a second, so that it can be seen what a cut
does to others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.field import NODES, ROLES, say
from benchmarks.figure import Figure, alone
from benchmarks.generator import ROUTES, Generator
from benchmarks.holder import Holder
from benchmarks.processes import listens, running, wait_until
from benchmarks.site import Site, enlist, initialise, serving
from benchmarks.usage import cpu
from deploy.demo.free_ports import free_ports
from tests.support.workspaces import fleet_workspace

CLOSE_SECONDS = 30
BYSTANDERS, BYSTANDERS_RATE = 8, 200
CALM_SECONDS, CALM_TRIES, CALM_US = 0.3, 10, 50_000
_NS = 1e6  # nanoseconds of a millisecond


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut. `called` and `answered`: milliseconds from the API's call, and from its answer, to the last close that a
    client saw. `cpu`: milliseconds of CPU that the gateway spent from the call to the last close. `beside` and
    `before`: microseconds that each request of a bystander took while it went on, and in the calm before it."""

    called: float
    answered: float
    cpu: float
    beside: Sequence[int]
    before: Sequence[int]


@dataclass(frozen=True, slots=True)
class Standing:
    """A gateway that serves, and the clients whose streams it carries."""

    site: Site
    holder: Holder

    def cut(self, groups: Sequence[str], begin: int, answered: int, spent: float) -> Cut:
        """What became of `groups` since the API was called at `begin` and answered at `answered` (nanoseconds since the
        Unix epoch), when the gateway had spent `spent` seconds of CPU. Raises `RuntimeError` when a stream goes on."""
        seen = [self.holder.closed(group, CLOSE_SECONDS) for group in groups]
        left = sum(each.opened - each.closed for each in seen)
        if left:
            raise RuntimeError(f"{left} streams go on after {CLOSE_SECONDS} s")
        if min(each.first for each in seen) < begin:
            raise RuntimeError("a stream was closed before it was cut")
        last, used = max(each.last for each in seen), cpu([self.site.pid]).total - spent
        beside = self.holder.latencies(begin, max(last, answered))
        before = self.holder.latencies(begin - int(CALM_SECONDS * 1e9), begin)
        return Cut((last - begin) / _NS, (last - answered) / _NS, used * 1000, beside, before)

    def calm(self) -> tuple[int, float]:
        """Wait until nothing is left of what opening streams held up, a moment at least; then what `cut` wants to
        know."""
        for _ in range(CALM_TRIES):
            begin = time.time_ns()
            time.sleep(CALM_SECONDS)
            if max(self.holder.latencies(begin, time.time_ns()), default=0) < CALM_US:
                break
        return time.time_ns(), cpu([self.site.pid]).total


@contextmanager
def standing() -> Iterator[Standing]:
    """The fleet and a gateway that lets each identity have thousands of streams. None is open yet."""
    with tempfile.TemporaryDirectory(prefix="sallyport-bench-") as made:
        folder, port = Path(made), free_ports(1)[0]
        site = initialise(folder, fleet_workspace(ROUTES, upstream=f"http://127.0.0.1:{port}"))
        enlist(site, NODES, ROLES, certified=NODES)
        site.set("gateway.listener", connections_per_identity=10_000)
        site.set("gateway.upstreams", max_connections=30_000)
        site.set("policy", decision_timeout="5s")  # thousands of streams open as fast as they can
        generator, log = Generator.make(folder, site), folder / "upstream.log"
        with running([generator.binary, "upstream", "-listen", f"127.0.0.1:{port}"], log) as upstream:
            wait_until(listens(port), upstream, log)
            with serving(site) as served, Holder.to(generator, served.gateway) as holder:
                holder.probe(BYSTANDERS, BYSTANDERS_RATE, f"/r{ROUTES - 1}/status")
                yield Standing(served, holder)


def p99(values: Sequence[float]) -> float:
    """The value that 99 of 100 do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]


def bystanders(name: str, cuts: Sequence[Cut], command: str) -> Iterator[Figure]:
    """The p99 of bystanders' requests while cuts went on, and in the calm before them."""
    beside = [micros / 1000 for each in cuts for micros in each.beside]
    before = [micros / 1000 for each in cuts for micros in each.before]
    yield alone(f"{name}_bystanders_p99_ms", p99(beside), "ms", command, beside)
    yield alone(f"{name}_bystanders_calm_p99_ms", p99(before), "ms", command, before)


def tell(what: str, number: int, count: int, cut: Cut) -> None:
    """Progress, now and then."""
    if number % 10 == 0 or number == count:
        beside = max(cut.beside, default=0) / 1000
        after = f"{cut.answered:.0f} ms after the answer, {cut.called:.0f} ms after the call"
        say(f"{what} {number}/{count}: {after}; a bystander waits for {beside:.0f} ms at most")

"""How much a brokered stream carries where its two tunnels do not end in one worker, by what it carries where they do.

The same connection as in `broker_throughput`: to a port of agent A, over two tunnels, to a service of agent B. Three
systems stand at the same time and are asked in turn: a gateway with one worker; a gateway with two, of which each has
one of the tunnels, and which pass the stream on by a Unix socket; two gateways with one worker each, which follow one
authority, know of each other by Redis, and pass it on by mutual TLS. All of them on the same processors, so a hop costs
twice: what it does, and what the others cannot do meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from benchmarks.agents import agent
from benchmarks.broker_throughput import Joined, joined
from benchmarks.field import say
from benchmarks.figure import Failure, Figure, Pairs
from benchmarks.gateways import apart
from benchmarks.processes import Subject
from benchmarks.site import DOMAIN, Site, serving
from benchmarks.tunnels import fleet
from benchmarks.usage import cpu
from deploy.demo.free_ports import free_ports
from foundation.identifiers import Kind, SpiffeId
from gateway.broker.siblings import SiblingTable
from gateway.plane import SIBLINGS
from tests.support.redis import redis_server

COMMAND = "python -m benchmarks.run broker_hops"
ROUNDS, SECONDS, WARM_SECONDS = 5, 2.0, 0.5
TRIES = 20  # tunnels fall to workers as they come


def figures(short: bool) -> Iterator[Figure | Failure]:
    rounds, seconds = (1, 1.0) if short else (ROUNDS, SECONDS)
    with joined() as one, across_workers() as workers, across_gateways() as gateways:
        measured = {"one": one, "workers": workers, "gateways": gateways}
        rates: dict[str, list[float]] = {name: [] for name in measured}
        spent: dict[str, list[float]] = {name: [] for name in measured}
        for number in range(rounds):
            for name in sorted(measured, reverse=bool(number % 2)):
                rate, seconds_each = _poured(measured[name], seconds)
                rates[name].append(rate)
                spent[name].append(seconds_each)
            say(f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {of[-1]:.0f} MB/s" for name, of in rates.items()))
    for name in ("workers", "gateways"):
        figure = f"brokered_tcp_across_{name}"
        yield Pairs(rates[name], rates["one"], "one worker").figure(f"{figure}_vs_one", "MB/s", COMMAND)
        yield Pairs(spent[name], spent["one"], "one worker").figure(f"{figure}_cpu_vs_one", "s of CPU/GB", COMMAND)


def _poured(system: Joined, seconds: float) -> tuple[float, float]:
    """Megabytes per second, and seconds of CPU for a gigabyte."""
    before = cpu(system.subject.pids)
    words = ("-up", "-warmup", f"{WARM_SECONDS}s", "-duration", f"{seconds}s")
    rate: float = system.load("pour", system.subject.port, *words)["per_second"]
    used = cpu(system.subject.pids).since(before).total
    return rate / 1e6, used * 1e9 / (rate * (seconds + WARM_SECONDS))


@contextmanager
def across_workers() -> Iterator[Joined]:
    """One gateway, two workers; each has one of the tunnels."""
    near, sink = free_ports(2)
    with ExitStack() as stack:
        stands = stack.enter_context(fleet(2))
        stands.site.set("gateway", workers=2)
        site = stack.enter_context(serving(stands.site))
        far_pid = stack.enter_context(agent(site, "edge-1", offers={"sink": sink}))
        near_pid = _at_the_other_worker(stack, site, near)
        yield Joined(stands, Subject("two workers", near, (near_pid, site.pid, far_pid)), sink)


def _at_the_other_worker(stack: ExitStack, site: Site, near: int) -> int:
    """Agent A, come again until its tunnel ends elsewhere than B's. Raises `RuntimeError`."""
    table = SiblingTable.shared(site.state / SIBLINGS, 0)
    stack.callback(table.close)
    for _ in range(TRIES):
        with ExitStack() as attempt:
            pid = attempt.enter_context(agent(site, "edge-0", ports={near: "edge-1"}))
            owners = [table.owner(SpiffeId(DOMAIN, Kind.NODE, name)) for name in ("edge-0", "edge-1")]
            if None not in owners and owners[0].worker != owners[1].worker:  # type: ignore[union-attr]  # neither is
                stack.push(attempt.pop_all())
                return pid
    raise RuntimeError(f"both tunnels ended at one worker {TRIES} times")


@contextmanager
def across_gateways() -> Iterator[Joined]:
    """Two gateways, one worker each; each has one of the tunnels."""
    near, sink = free_ports(2)
    with ExitStack() as stack:
        stands = stack.enter_context(fleet(2))
        redis = stack.enter_context(redis_server())
        system = stack.enter_context(apart(stands, 2, redis.socket))
        first, second = system.gateways
        far_pid = stack.enter_context(agent(_by(system.authority, second), "edge-1", offers={"sink": sink}))
        near_pid = stack.enter_context(agent(_by(system.authority, first), "edge-0", ports={near: "edge-1"}))
        yield Joined(stands, Subject("two gateways", near, (near_pid, first.pid, second.pid, far_pid)), sink)


def _by(authority: Site, gateway: Site) -> Site:
    """The same fleet and authority, by this gateway."""
    return replace(authority, ports={**authority.ports, "gateway": gateway.ports["gateway"]})

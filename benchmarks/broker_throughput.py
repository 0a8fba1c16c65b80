"""How much a brokered stream carries, beside HAProxy with as many TLS hops; and whether streams share it fairly.

A connection goes to a port of agent A, over its tunnel to the gateway, over the other tunnel to agent B, and to a
service: four processes of ours, each decrypting or encrypting what passes. The peer is HAProxy three times in a row,
TCP, mTLS, mTLS, TCP, with the same certificates. Both in turn, one connection at a time, which sends as fast as it is
taken; the program that sends and receives is the same and runs on the same processors. `brokered_tcp_vs_haproxy` is the
median of the ratios, `brokered_tcp_down_vs_haproxy` the same towards the client, and `brokered_tcp_both_vs_haproxy`
both ways at once.

`stream_fairness_ratio`: 1,000 connections over one tunnel, all of them sending for as long as it lasts; the most that
one carried, by the least.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import haproxy
from benchmarks.agents import agent
from benchmarks.field import say
from benchmarks.figure import Failure, Figure, Pairs, at_most
from benchmarks.processes import ENVIRONMENT, Subject
from benchmarks.site import serving
from benchmarks.tunnels import Fleet, fleet
from benchmarks.usage import cpu
from deploy.demo.free_ports import free_ports

COMMAND = "python -m benchmarks.run broker_throughput"
LEAST, FAIR, STREAMS = 0.5, 2.0, 1_000
SECONDS, FAIR_SECONDS = 2.0, 40.0
_WAYS = {"": ("-up",), "_down": ("-down",), "_both": ("-up", "-down")}


@dataclass(frozen=True, slots=True)
class Joined:
    """Agents A and B with a gateway between them: who connects to the subject's port reaches `sink`."""

    stands: Fleet
    subject: Subject
    sink: int

    def load(self, command: str, target: int, *words: str) -> dict[str, Any]:
        """What the load program's `command` found. Raises `RuntimeError`."""
        ends = ["-target", f"127.0.0.1:{target}", "-sink", f"127.0.0.1:{self.sink}"]
        done = subprocess.run(
            [self.stands.generator.binary, command, *ends, *words],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"load {command}: {done.stderr}")
        found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        return found


@contextmanager
def joined(workers: int = 1) -> Iterator[Joined]:
    """For as long as the block lasts. With one worker, both tunnels end in it."""
    near, sink = free_ports(2)
    with ExitStack() as stack:
        stands = stack.enter_context(fleet(2))
        stands.site.set("gateway", workers=workers)
        site = stack.enter_context(serving(stands.site))
        far_pid = stack.enter_context(agent(site, "edge-1", offers={"sink": sink}))
        near_pid = stack.enter_context(agent(site, "edge-0", ports={near: "edge-1"}))
        yield Joined(stands, Subject("Sallyport", near, (near_pid, site.pid, far_pid)), sink)


def figures(short: bool) -> Iterator[Figure | Failure]:
    rounds, seconds = (1, 1.0) if short else (7, SECONDS)
    with joined() as ours, haproxy.chain(ours.stands.folder / "haproxy", ours.stands.site, ours.sink) as peer:
        for way, words in _WAYS.items():
            yield from _beside(ours, peer, way, words, rounds, seconds)
        yield _fairness(ours, STREAMS if not short else 50, FAIR_SECONDS if not short else 2.0)


def _beside(
    ours: Joined, peer: Subject, way: str, words: Sequence[str], rounds: int, seconds: float
) -> Iterator[Figure | Failure]:
    rates: dict[str, list[float]] = {ours.subject.name: [], peer.name: []}
    spent: dict[str, list[float]] = {ours.subject.name: [], peer.name: []}
    for number in range(rounds):
        for subject in (ours.subject, peer) if number % 2 else (peer, ours.subject):
            before = cpu(subject.pids)
            found = ours.load("pour", subject.port, *words, "-warmup", "500ms", "-duration", f"{seconds}s")
            used = cpu(subject.pids).since(before).total
            rates[subject.name].append(found["per_second"] / 1e6)
            spent[subject.name].append(used * 1e9 / (found["per_second"] * (seconds + 0.5)))
        say(
            f"round {number + 1}/{rounds}{way}: "
            + ", ".join(f"{name} {each[-1]:.0f} MB/s" for name, each in rates.items())
        )
    own, theirs = rates[ours.subject.name], rates[peer.name]
    least = None if way == "_both" else LEAST
    yield Pairs(own, theirs, peer.name, least=least).figure(f"brokered_tcp{way}_vs_haproxy", "MB/s", COMMAND)
    own, theirs = spent[ours.subject.name], spent[peer.name]
    yield Pairs(own, theirs, peer.name).figure(f"brokered_tcp{way}_cpu_vs_haproxy", "s of CPU/GB", COMMAND)


def _fairness(ours: Joined, streams: int, seconds: float) -> Figure:
    found = ours.load(
        "pour", ours.subject.port, "-up", "-connections", str(streams), "-warmup", "5s", "-duration", f"{seconds}s"
    )
    carried = [each / 1e6 for each in found["connections"]]
    say(f"{streams} streams: {found['per_second'] / 1e6:.0f} MB/s, {min(carried):.2f} to {max(carried):.2f} MB each")
    ratio = max(carried) / min(carried) if min(carried) else float("inf")
    return at_most("stream_fairness_ratio", ratio, "max/min", FAIR, COMMAND)

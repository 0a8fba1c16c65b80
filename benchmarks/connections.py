"""What a connection costs: a full handshake with a client's certificate, and the memory of one that is idle.

Handshakes are TLS 1.3 with P-256 certificates on both sides and X25519, never resumed: each client connects, says
goodbye, and counts the handshake when the server has ended the connection too. Sallyport and nginx in turn, 32 at a
time, the same certificates, all processors.

`idle_connection_kb` is by how much the memory of the process tree grows (PSS: what processes share counts once), for
each of 4,000 connections that made their handshake and one request, and then do nothing. What the kernel keeps for
their sockets is not in it. The peers' follow, measured in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks import caddy, envoy, nginx
from benchmarks.field import Field, Round, say, stand
from benchmarks.figure import Failure, Figure, Pairs, alone, at_most
from benchmarks.holder import Holder
from benchmarks.processes import Subject
from benchmarks.site import serving
from benchmarks.usage import pss

COMMAND = "python -m benchmarks.run connections"
IDLE, WARM = 4_000, 200
IDLE_GOAL_KB, LEAST = 45.0, 0.5
SECONDS, SETTLE_SECONDS = 4.0, 2.0
_NAMES = {envoy.NAME: "envoy_opa", caddy.NAME: "caddy", nginx.NAME: "nginx"}


def figures(short: bool) -> Iterator[Figure | Failure]:
    with stand() as stands:
        stands.site.set("gateway.listener", idle_timeout="1h")
        with serving(stands.site) as served:
            yield from _handshakes(stands, served.gateway, 2 if short else 5)
        with serving(stands.site) as served:
            yield from _idle(stands, served.gateway)


def _handshakes(stands: Field, own: Subject, rounds: int) -> Iterator[Figure | Failure]:
    name, peer = "handshakes_vs_nginx", stands.peers.get(nginx.NAME)
    if peer is None:
        yield Failure(name, stands.failed[nginx.NAME])
        return
    measured = Round([own, peer], lambda subject: stands.generator.shake(subject, seconds=SECONDS)).run(rounds)
    if measured.failed:
        yield Failure(name, str(measured.failed))
        return
    ours, theirs = measured.outcomes[own.name], measured.outcomes[peer.name]
    rates = ([each.per_second for each in found] for found in (ours, theirs))
    yield Pairs(*rates, peer.name, least=LEAST).figure(name, "handshakes/s", COMMAND)
    spent = ([each.cpu.total for each in found] for found in (ours, theirs))
    yield Pairs(*spent, peer.name).figure("handshakes_cpu_vs_nginx", "us of CPU/handshake", COMMAND)


def _idle(stands: Field, own: Subject) -> Iterator[Figure | Failure]:
    try:
        yield at_most("idle_connection_kb", _kilobytes(stands, own), "KB", IDLE_GOAL_KB, COMMAND)
    except (OSError, RuntimeError) as error:
        yield Failure("idle_connection_kb", str(error))
    for peer in stands.peers.values():
        name = f"idle_connection_{_NAMES[peer.name]}_kb"
        try:
            yield alone(name, _kilobytes(stands, peer), "KB", COMMAND)
        except (OSError, RuntimeError) as error:
            yield Failure(name, str(error))


def _kilobytes(stands: Field, subject: Subject) -> float:
    """Of one idle connection. Some that came and went before have had memory allocated that none of these owns."""
    with Holder.to(stands.generator, subject) as warm:
        warm.open("warm", "*", WARM, "/r0/status")
    before = _settled(subject)
    with Holder.to(stands.generator, subject) as holder:
        holder.open("idle", "*", IDLE, "/r0/status")
        grown = _settled(subject) - before
        if holder.count("idle") != IDLE:
            raise RuntimeError(f"{subject.name} closed {IDLE - holder.count('idle')} idle connections")
    say(f"{subject.name}: {before >> 20} MB, and {grown >> 20} MB for {IDLE} connections")
    return grown / IDLE / 1000


def _settled(subject: Subject) -> float:
    """Bytes, after what is under way has ended."""
    found = []
    for _ in range(3):
        time.sleep(SETTLE_SECONDS / 3)
        found.append(pss(subject.pids))
    return median(found)

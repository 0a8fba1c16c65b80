"""Forwarding with a decision on every request, beside Envoy that asks OPA, and Caddy and nginx that decide nothing.

All stand on this machine at the same time, before the same upstream, with the same certificates, and Envoy's OPA has
the same Rego and data. The load goes to one after the other, in turn. What is reported is the median of the ratios,
round by round. Client, proxies and upstream share the machine's processors: a rate says what a whole machine carries,
not what a proxy could carry alone. `forward_cpu_*` says what each proxy itself spends on a request.

Both deciders put every decision on record: Sallyport with the kernel before the answer, OPA's server buffered for
10 ms. `forward_uncached_vs_envoy_opa` is Sallyport with its decision cache turned off, so that both evaluate Rego for
every request.

OPA is in the process that Envoy asks. `forward_envoy_opa_server_vs_in_process` is what Envoy carries when OPA is a
server of its own instead, beside that: the stronger of the two is compared with.

`added_latency_p99_ms` is at half of the highest load that Sallyport carried: the p99 through it, less the p99 of the
same load offered directly to the upstream, without TLS. Each latency counts from when a request was due.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks import caddy, envoy, nginx
from benchmarks.field import PEERS, Field, Round, say, stand
from benchmarks.figure import Failure, Figure, Pairs, alone, at_most
from benchmarks.generator import Outcome
from benchmarks.processes import Subject
from benchmarks.site import Site, serving

COMMAND = "python -m benchmarks.run forward"
SECONDS, WARM_SECONDS = 4.0, 30.0
ADDED_P99_GOAL_MS = 2.0
# Of each peer: the figures' ends, and the least ratio.
_PEERS = {envoy.NAME: ("envoy_opa", 3.0), caddy.NAME: ("caddy", 1.0), nginx.NAME: ("nginx", 0.5)}


def figures(short: bool) -> Iterator[Figure | Failure]:
    with stand((*PEERS, envoy.SERVER_NAME)) as stands:
        with serving(stands.site) as served:
            own = served.gateway
            say(f"warming up for {WARM_SECONDS:.0f} s")
            _warm(stands, own)
            rounds, before = 2 if short else 5, _evaluated(served)
            measured = Round([own, *_usual(stands)], lambda subject: _offer(stands, subject)).run(rounds)
            yield alone("forward_cache_hit_percent", _hit_percent(before, _evaluated(served)), "%", COMMAND)
            yield from _beside_peers(stands, measured, own.name)
            yield from _server(stands, measured, 2 if short else 3)
            yield from _latencies(stands, own, measured, 2 if short else 3)
        stands.site.set("policy.cache", entries=0)
        with serving(stands.site) as served:
            own, peer = served.gateway, stands.peers.get(envoy.NAME)
            subjects = [own, *([peer] if peer else [])]
            uncached = Round(subjects, lambda subject: _offer(stands, subject)).run(2 if short else 3)
            name = "forward_uncached_vs_envoy_opa"
            yield _rates(name, stands, uncached, own.name, envoy.NAME, 1.0)


def _warm(stands: Field, own: Subject) -> None:
    """Nothing is measured; what fails is told."""
    try:
        stands.generator.offer(own, seconds=WARM_SECONDS)
    except RuntimeError as error:
        say(str(error))


def _evaluated(served: Site) -> tuple[float, float]:
    """How many decisions were evaluated, and how many requests were answered."""
    return served.metric("sallyport_decisions_evaluated"), served.metric("sallyport_exchanges_total")


def _hit_percent(before: tuple[float, float], after: tuple[float, float]) -> float:
    return 100 - 100 * (after[0] - before[0]) / (after[1] - before[1])


def _offer(stands: Field, subject: Subject) -> Outcome:
    return stands.generator.offer(subject, seconds=SECONDS)


def _beside_peers(stands: Field, measured: Round, own: str) -> Iterator[Figure | Failure]:
    for peer, (end, least) in _PEERS.items():
        yield _rates(f"forward_vs_{end}", stands, measured, own, peer, least)
    for peer, (end, _) in _PEERS.items():
        if not _why(stands, measured, own, peer):
            ours, theirs = ([each.cpu.total for each in measured.outcomes[name]] for name in (own, peer))
            yield Pairs(ours, theirs, peer).figure(f"forward_cpu_vs_{end}", "us of CPU/request", COMMAND)
    load = [each.load_cpu.total for found in measured.outcomes.values() for each in found]
    yield alone("forward_load_cpu_us", median(load), "us of CPU/request", COMMAND, load)


def _rates(name: str, stands: Field, measured: Round, own: str, peer: str, least: float) -> Figure | Failure:
    why = _why(stands, measured, own, peer)
    if why:
        return Failure(name, why)
    ours, theirs = ([each.per_second for each in measured.outcomes[subject]] for subject in (own, peer))
    return Pairs(ours, theirs, peer, least=least).figure(name, "requests/s", COMMAND)


def _why(stands: Field, measured: Round, own: str, peer: str) -> str:
    """Why these two cannot be compared; empty when they can."""
    failed = stands.failed | measured.failed
    return failed.get(own, "") or failed.get(peer, "")


def _usual(stands: Field) -> list[Subject]:
    return [subject for name, subject in stands.peers.items() if name in PEERS]


def _server(stands: Field, measured: Round, rounds: int) -> Iterator[Figure | Failure]:
    """What Envoy carries when OPA is a server of its own, beside what it carried before."""
    name, server = "forward_envoy_opa_server_vs_in_process", stands.peers.get(envoy.SERVER_NAME)
    before = [each.per_second for each in measured.outcomes.get(envoy.NAME, ())]
    if server is None or len(before) < rounds or envoy.NAME in measured.failed:
        yield Failure(name, stands.failed.get(envoy.SERVER_NAME, "there is nothing to compare with"))
        return
    asked = Round([server], lambda subject: _offer(stands, subject)).run(rounds)
    if asked.failed:
        yield Failure(name, asked.failed[server.name])
        return
    rates = [each.per_second for each in asked.outcomes[server.name]]
    yield Pairs(rates, before[-rounds:], envoy.NAME).figure(name, "requests/s", COMMAND)


def _latencies(stands: Field, own: Subject, measured: Round, rounds: int) -> Iterator[Figure | Failure]:
    """Each at half of the highest load that it carried itself: Sallyport, and Envoy beside it."""
    name = "added_latency_p99_ms"
    try:
        added = _added(stands, own, measured, rounds)
    except (OSError, RuntimeError) as error:
        yield Failure(name, str(error))
        return
    yield at_most(name, median(added), "ms", ADDED_P99_GOAL_MS, COMMAND, added)
    peer = stands.peers.get(envoy.NAME)
    if peer is not None and peer.name not in measured.failed:
        theirs = _added(stands, peer, measured, rounds)
        yield alone("added_latency_p99_envoy_opa_ms", median(theirs), "ms", COMMAND, theirs)


def _added(stands: Field, subject: Subject, measured: Round, rounds: int) -> list[float]:
    """By how many milliseconds p99 is longer through `subject` than without it, again and again."""
    rate = max(each.per_second for each in measured.outcomes[subject.name]) / 2
    found = []
    for _ in range(rounds):
        through = stands.generator.offer(subject, seconds=SECONDS, rate=rate)
        direct = stands.generator.offer(stands.upstream, seconds=SECONDS, rate=rate, plain=True)
        told = (f"p50 {each.p50:.2f} p99 {each.p99:.2f} ms" for each in (through, direct))
        say(f"at {rate:.0f}/s: " + ", directly ".join(told))
        found.append(through.p99 - direct.p99)
    return found

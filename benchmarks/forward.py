"""Forwarding with a decision on every request, beside Envoy that asks OPA, and nginx that decides nothing.

All stand on this machine at the same time, before the same upstream, with the same certificates, and Envoy's OPA has
the same Rego and data. The load goes to one after the other, in turn, and what is reported is the pair of measurements
whose ratio is the median. Client, proxies and upstream share the machine's processors: a figure says what a whole
machine carries, not what a proxy could carry alone.

The fleet is 1,000 nodes, 200 routes, 500 grants; clients ask for 5,000 paths by Zipf's law, each in an order of its
own. 64 connections are open at a time, each of another node.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import nginx
from benchmarks.envoy import envoy, opa
from benchmarks.figure import Figure, against, beside
from benchmarks.fleet import expected_nodes
from benchmarks.generator import Generator, Outcome, build
from benchmarks.site import DOMAIN, Site, enlist, initialise, serving
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from policies.lifecycle.workspace import read_workspace
from policies.model import CanonicalRequest, Query, Staleness
from tests.support.workspaces import fleet_workspace

COMMAND = "python -m benchmarks.run forward"
NODES, CONNECTIONS, ROUTES, PATHS = 1000, 64, 200, 5000
ROLES = tuple(f"role-{i}" for i in range(8))
PAIRS, SECONDS = 5, 4.0
OPA = "Envoy asking OPA (ext_authz, OPA as a library, decisions logged)"
NGINX = "nginx, mTLS proxy without decisions"


@dataclass(frozen=True, slots=True)
class Field:
    """What stands on the machine: the load, and the ports that it goes to."""

    generator: Generator
    sallyport: int
    envoy: int
    nginx: int

    def pairs(self, peer: int, count: int, *, rate: float = 0.0) -> list[tuple[Outcome, Outcome]]:
        """Sallyport's outcome and the peer's, measured in turn."""
        ports = (self.sallyport, peer)
        found = [[self.generator.offer(port, seconds=SECONDS, rate=rate) for port in ports] for _ in range(count)]
        return [(own, other) for own, other in found]


def figures() -> list[Figure]:
    with field() as stands:
        return [*_throughput(stands), *_latencies(stands)]


@contextmanager
def field() -> Iterator[Field]:
    """Start everything; stop it at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sallyport-bench-")))
        load, authorizer = build("load", folder), build("opa_ext_authz", folder)
        upstream = stack.enter_context(nginx.static(folder / "upstream"))
        site = initialise(folder, fleet_workspace(ROUTES, upstream=f"http://127.0.0.1:{upstream}"))
        enlist(site, NODES, ROLES, certified=CONNECTIONS)
        workspace = read_workspace(site.state / "policy")
        socket = stack.enter_context(opa(authorizer, folder / "opa", workspace, identities(), records=True))
        pair = site.server_pair
        asking = stack.enter_context(envoy(folder / "envoy", upstream, pair, site.root, socket))
        plain = stack.enter_context(nginx.proxy(folder / "nginx", upstream, pair, site.root))
        served = stack.enter_context(serving(site))
        yield Field(_generator(load, folder, site), served.ports["gateway"], asking, plain)


def identities() -> dict[str, Any]:
    """What policy sees of each node, as the gateway has it from the authority."""
    posture = Posture(AttestationClass.VIRTUAL, Verdict.PASSED)
    request = CanonicalRequest("GET", "get", "", (), (), "", b"")
    found = {}
    for node in expected_nodes(DOMAIN, NODES, ROLES):
        record = IdentityRecord(node.id, State.ACTIVE, 1, node.roles, node.tier, node.region, node.site, node.segment)
        document = Query(0, record, posture, "", request, Staleness.FRESH).to_input()
        found[str(node.id)] = document["identity"]
    return found


def _generator(binary: Path, folder: Path, site: Site) -> Generator:
    requests = folder / "requests"
    shapes = ("status", *(f"items/{i}" for i in range(12)), *(f"files/a/{i}" for i in range(12)))
    requests.write_text("\n".join(f"GET /r{i % ROUTES}/{shapes[i // ROUTES]}" for i in range(PATHS)))
    return Generator(binary, site.root, site.clients, requests, CONNECTIONS)


def _throughput(stands: Field) -> list[Figure]:
    own, asking = _median(stands.pairs(stands.envoy, PAIRS))
    alone, plain = _median(stands.pairs(stands.nginx, 1))
    unit = "requests/s"
    return [
        against("forward_vs_envoy_opa", own.per_second, unit, OPA, asking.per_second, 1.0, COMMAND),
        beside("forward_vs_nginx", alone.per_second, unit, NGINX, plain.per_second, COMMAND),
    ]


def _latencies(stands: Field) -> list[Figure]:
    """At half of what the slower of the two carries, offered to both alike."""
    most = [stands.generator.offer(port, seconds=2.0).per_second for port in (stands.sallyport, stands.envoy)]
    own, asking = stands.pairs(stands.envoy, 1, rate=min(most) / 2)[0]
    return [
        beside("forward_p50_half_load", own.p50, "ms", OPA, asking.p50, COMMAND),
        beside("forward_p99_half_load", own.p99, "ms", OPA, asking.p99, COMMAND),
    ]


def _median(pairs: list[tuple[Outcome, Outcome]]) -> tuple[Outcome, Outcome]:
    """The pair whose ratio is the median."""
    for own, other in pairs:
        print(f"  sallyport {own.per_second:.0f}/s, peer {other.per_second:.0f}/s", file=sys.stderr)
    return sorted(pairs, key=lambda pair: pair[0].per_second / pair[1].per_second)[len(pairs) // 2]

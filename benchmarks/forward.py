"""Forwarding with a decision on every request, beside Envoy that asks OPA, and nginx that decides nothing.

All stand on this machine at the same time, before the same upstream, with the same certificates, and Envoy's OPA has
the same Rego and data. The load goes to one after the other, in turn, and what is reported is the pair of measurements
whose ratio is the median. Client, proxies and upstream share the machine's processors: a figure says what a whole
machine carries, not what a proxy could carry alone.

Both put every decision on record: Sallyport with the kernel before the answer, OPA's server buffered for 10 ms. Half
load is half of what the slower of the two carries, offered to both alike. `forward_uncached_vs_envoy_opa` is Sallyport
with its decision cache turned off, so that both evaluate Rego for every request.

The fleet is 1,000 nodes, 200 routes, 500 grants; clients ask for 5,000 paths by Zipf's law, each in an order of its
own. 64 connections are open at a time, each of another node.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import nginx
from benchmarks.envoy import envoy, opa
from benchmarks.figure import Figure, against, beside
from benchmarks.fleet import expected_nodes
from benchmarks.generator import Generator, Outcome, build, median
from benchmarks.site import DOMAIN, Site, enlist, initialise, serving
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from policies.lifecycle.workspace import read_workspace
from policies.model import CanonicalRequest, Query, Staleness
from tests.support.workspaces import fleet_workspace

COMMAND = "python -m benchmarks.run forward"
NODES, CONNECTIONS, ROUTES, PATHS = 1000, 64, 200, 5000
ROLES = tuple(f"role-{i}" for i in range(8))
PAIRS, SECONDS = 5, 4.0
OPA = "Envoy and OPA (ext_authz, in process, logged)"
NGINX = "nginx, mTLS, no decisions"
NO_CACHE = """
[policy.cache]
entries = 0
"""


@dataclass(frozen=True, slots=True)
class Field:
    """What stands on the machine: Sallyport, to be served, its peers' ports, and the load for all of them."""

    generator: Generator
    site: Site
    envoy: int
    nginx: int

    def pairs(self, peer: int, count: int, *, rate: float = 0.0) -> list[tuple[Outcome, Outcome]]:
        """Sallyport's outcome and the peer's, measured in turn."""
        return [(self._offer(self.site.ports["gateway"], rate), self._offer(peer, rate)) for _ in range(count)]

    def _offer(self, port: int, rate: float) -> Outcome:
        return self.generator.offer(port, seconds=SECONDS, rate=rate)


def figures() -> list[Figure]:
    with field() as stands:
        with serving(stands.site):
            remembering, most = _against_opa("forward_vs_envoy_opa", stands, PAIRS)
            found = [remembering, _against_nginx(stands), *_latencies(stands, most / 2)]
        with stands.site.config.open("a") as settings:
            settings.write(NO_CACHE)
        with serving(stands.site):
            uncached, _ = _against_opa("forward_uncached_vs_envoy_opa", stands, 3)
    return [*found, replace(uncached, goal="", reached=True)]


@contextmanager
def field() -> Iterator[Field]:
    """Start the peers and make the site; stop and remove everything at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sallyport-bench-")))
        load, authorizer = build("load", folder), build("opa_ext_authz", folder)
        upstream = stack.enter_context(nginx.static(folder / "upstream"))
        site = initialise(folder, fleet_workspace(ROUTES, upstream=f"http://127.0.0.1:{upstream}"))
        enlist(site, NODES, ROLES, certified=CONNECTIONS)
        workspace = read_workspace(site.state / "policy")
        socket = stack.enter_context(opa(authorizer, folder / "opa", workspace, identities()))
        pair = site.server_pair
        asking = stack.enter_context(envoy(folder / "envoy", upstream, pair, site.root, socket))
        plain = stack.enter_context(nginx.proxy(folder / "nginx", upstream, pair, site.root))
        yield Field(generator(load, folder, site), site, asking, plain)


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


def generator(binary: Path, folder: Path, site: Site) -> Generator:
    requests = folder / "requests"
    shapes = ("status", *(f"items/{i}" for i in range(12)), *(f"files/a/{i}" for i in range(12)))
    requests.write_text("\n".join(f"GET /r{i % ROUTES}/{shapes[i // ROUTES]}" for i in range(PATHS)))
    return Generator(binary, site.root, site.clients, requests, CONNECTIONS)


def _against_opa(name: str, stands: Field, count: int) -> tuple[Figure, float]:
    """The figure, and what the slower of the two carries, in requests per second."""
    own, peer = median(stands.pairs(stands.envoy, count))
    figure = against(name, own.per_second, "requests/s", OPA, peer.per_second, 1.0, COMMAND)
    return figure, min(own.per_second, peer.per_second)


def _against_nginx(stands: Field) -> Figure:
    own, peer = median(stands.pairs(stands.nginx, 1))
    return beside("forward_vs_nginx", own.per_second, "requests/s", NGINX, peer.per_second, COMMAND)


def _latencies(stands: Field, rate: float) -> list[Figure]:
    """With `rate` requests per second offered to both."""
    own, peer = stands.pairs(stands.envoy, 1, rate=rate)[0]
    return [
        beside("forward_p50_half_load", own.p50, "ms", OPA, peer.p50, COMMAND),
        beside("forward_p99_half_load", own.p99, "ms", OPA, peer.p99, COMMAND),
    ]

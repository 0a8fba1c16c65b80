"""What stands on the machine while gateways are compared: Sallyport's site with its fleet, the peers, one upstream for
all of them, and the load. All present the same certificate, ask for the same clients' certificates, and use every
processor."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import caddy, envoy, nginx
from benchmarks.fleet import expected_nodes
from benchmarks.generator import ROUTES, Generator, Outcome
from benchmarks.processes import Subject, build
from benchmarks.site import DOMAIN, Site, enlist, initialise
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from policies.lifecycle.workspace import read_workspace
from policies.model import CanonicalRequest, Query, Staleness
from tests.support.workspaces import fleet_workspace

NODES = 1000
ROLES = tuple(f"role-{i}" for i in range(8))
PEERS = (envoy.NAME, caddy.NAME, nginx.NAME)


@dataclass(slots=True)
class Field:
    """Sallyport is there to be served; of the peers those that started. `failed` says why the others did not."""

    folder: Path
    site: Site
    generator: Generator
    upstream: Subject
    peers: dict[str, Subject] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@contextmanager
def stand(peers: Sequence[str] = PEERS) -> Iterator[Field]:
    """Make the site and start the peers; stop and remove everything at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sallyport-bench-")))
        upstream = stack.enter_context(nginx.static(folder / "upstream"))
        site = initialise(folder, fleet_workspace(ROUTES, upstream=f"http://127.0.0.1:{upstream.port}"))
        enlist(site, NODES, ROLES, certified=NODES)
        stands = Field(folder, site, Generator.make(folder, site), upstream)
        for name in peers:
            try:
                stands.peers[name] = stack.enter_context(_STARTS[name](stands))
            except (OSError, RuntimeError) as error:
                say(f"{name} does not start: {error}")
                stands.failed[name] = str(error)
        yield stands


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"  {line}", file=sys.stderr, flush=True)


class Round:
    """What several subjects do with the same load, each in turn, and again; every round begins with another of them, so
    that none always comes first. What a subject fails is done once more; one that fails twice is left out from then
    on."""

    def __init__(self, subjects: Sequence[Subject], load: Callable[[Subject], Outcome]) -> None:
        self._subjects = list(subjects)
        self._load = load
        self.outcomes: dict[str, list[Outcome]] = {each.name: [] for each in subjects}
        self.failed: dict[str, str] = {}

    def run(self, count: int) -> Round:
        for number in range(count):
            begin = number % len(self._subjects)
            for subject in self._subjects[begin:] + self._subjects[:begin]:
                if subject.name not in self.failed:
                    self._ask(subject)
            self._tell(number + 1, count)
        return self

    def _ask(self, subject: Subject) -> None:
        for last in (False, True):
            try:
                self.outcomes[subject.name].append(self._load(subject))
                return
            except (OSError, RuntimeError) as error:
                say(f"fails: {error}")
                if last:
                    self.failed[subject.name] = str(error)

    def _tell(self, number: int, count: int) -> None:
        told = (
            f"{name.partition(',')[0].partition(' (')[0]} {found[-1].per_second:.0f}/s {found[-1].cpu.total:.0f} us"
            for name, found in self.outcomes.items()
            if found and name not in self.failed
        )
        say(f"round {number}/{count}: " + "   ".join(told))


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


@contextmanager
def _envoy(
    stands: Field, name: str, decide: Callable[..., AbstractContextManager[envoy.Authorizer]]
) -> Iterator[Subject]:
    workspace, folder = read_workspace(stands.site.state / "policy"), stands.folder / name
    with decide(build("opa_ext_authz", stands.folder), folder, workspace, identities()) as asked:
        pair, root = stands.site.server_pair, stands.site.root
        with envoy.envoy(folder, stands.upstream.port, pair, root, asked) as subject:
            yield subject


def _caddy(stands: Field) -> AbstractContextManager[Subject]:
    return caddy.proxy(stands.folder / "caddy", stands.upstream.port, stands.site.server_pair, stands.site.root)


def _nginx(stands: Field) -> AbstractContextManager[Subject]:
    return nginx.proxy(stands.folder / "nginx", stands.upstream.port, stands.site.server_pair, stands.site.root)


_STARTS: dict[str, Callable[[Field], AbstractContextManager[Subject]]] = {
    envoy.NAME: lambda stands: _envoy(stands, "envoy", envoy.opa),
    envoy.SERVER_NAME: lambda stands: _envoy(stands, "envoy-server", envoy.opa_server),
    caddy.NAME: _caddy,
    nginx.NAME: _nginx,
}

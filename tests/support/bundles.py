"""Bundles as an authority would give them, with real signed revisions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from agent.bundle import Bundles, BundleSettings
from agent.sealed_file import Lock, SoftwareLock, Vault
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, SnapshotNumbers, State, Verdict
from foundation.reasons import Reason
from foundation.trusttime import TrustTime
from foundation.wire.bundle import BundleTerms, NodeBundle
from policies.compile import compile_policy
from policies.lifecycle.revision import Revision, assemble
from policies.settings import CompileSettings
from policies.signing import SigningKey, public_pem
from tests.fakes.clock import ManualClock
from tests.support.policy import workspace
from tests.support.signing import new_signing_key

ROUTES = """
routes:
  - {name: database, type: stream, service: postgres, kinds: [node]}
  - {name: models, upstreams: ['http://127.0.0.1:80'], kinds: [node], prefix: /models}
  - {name: manual, upstreams: ['http://127.0.0.1:82'], kinds: [node], prefix: /manual, class: tolerant}
  - {name: valve, upstreams: ['http://127.0.0.1:81'], kinds: [node], prefix: /valve, class: critical}
"""
GRANTS = """
roles: {agent: An agent, reader: A reader}
grants:
  - {id: read, role: reader, route: models, methods: [GET], paths: [/models/**], expires: 2030-01-01}
  - {id: turn, role: agent, route: valve, methods: [POST], paths: [/valve], expires: 2030-01-01}
  - {id: look, role: agent, route: manual, methods: [GET], paths: [/models/a], expires: 2030-01-01}
  - {id: push, role: agent, route: models, methods: [PUT], paths: [/models/**], expires: 2030-01-01}
"""
NODE = SpiffeId.parse("spiffe://fleet.example/node/edge-1")
RECORD = IdentityRecord(NODE, State.ACTIVE, 3, roles=("agent", "reader"), tier=2, site="lab", segment="edge")
KEY, OTHER_KEY = new_signing_key(), new_signing_key()


@cache
def archive(number: int, key: SigningKey = KEY, grants: str = GRANTS) -> bytes:
    """The signed revision of this number."""
    found = workspace(routes=ROUTES, grants=grants)
    return _assembled(number, grants, found.routes).signed(key)


@cache
def _assembled(number: int, grants: str, routes: Any) -> Revision:
    return assemble(_compiled(grants), routes, number, 1_800_000_000)


@cache
def _compiled(grants: str) -> Any:
    found = workspace(routes=ROUTES, grants=grants)
    return compile_policy(found.rego, found.data, CompileSettings())


@dataclass
class FakeAuthority:
    """Answers as the authority's `GET /v1/node/bundle` does; tests change what it says. With `fault` it refuses."""

    clock: ManualClock
    number: int = 1
    key: SigningKey = field(default_factory=lambda: KEY)
    record: IdentityRecord = RECORD
    posture: Posture = field(default_factory=lambda: Posture(AttestationClass.VIRTUAL, Verdict.PASSED))
    terms: BundleTerms = field(default_factory=BundleTerms)
    grants: str = GRANTS
    fault: Reason | None = None
    asked: list[int] = field(default_factory=list)

    def fetch(self, have: int) -> NodeBundle:
        self.asked.append(have)
        if self.fault is not None:
            raise Fault(self.fault)
        bundle = NodeBundle(
            at=self.clock.now(),
            numbers=SnapshotNumbers(self.number, 0, 0, 0),
            policy_key=public_pem(self.key),
            record=self.record,
            posture=self.posture,
            attested_until=self.clock.now() + 60,
            terms=self.terms,
            archive=archive(self.number, self.key, self.grants),
        )
        return NodeBundle.parse((replace(bundle, archive=b"") if have == self.number else bundle).encode())


@dataclass
class Keeping:
    """One node's bundles over its files, as often as it starts."""

    folder: Path
    authority: FakeAuthority
    clock: ManualClock
    lock: Lock | None = None
    noted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def start(self, settings: BundleSettings | None = None) -> Bundles:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        vault = Vault(self.folder, self.lock or SoftwareLock(self.folder / "bundle.key"))
        time = TrustTime.open(self.folder / "trust-time", self.clock)
        return Bundles(
            NODE,
            self.authority.fetch,
            vault,
            self.folder,
            time,
            lambda kind, detail: self.noted.append((kind, detail)),
            settings,
            draw=lambda least, most: most,
        )

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.noted]

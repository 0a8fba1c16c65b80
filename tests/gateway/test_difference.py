"""A new revision decides again exactly what it may change: held against deciding everything again, over random
workspaces by the default policy, and random exchanges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest

from foundation.decisionlog.ids import DecisionIds
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import (
    AttestationClass,
    Heartbeat,
    IdentityChanged,
    IdentityRecord,
    Posture,
    PostureChanged,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason
from gateway.difference import RevisionDifference
from gateway.proxy.decide import Decider
from gateway.proxy.identify import Peer
from gateway.proxy.oblige import Obligations
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore
from gateway.streams.registry import Exchange
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.lifecycle.workspace import Workspace
from policies.model import FOREVER, CanonicalRequest, Decision, Permit
from policies.routes import Route, RouteType
from policies.settings import CompileSettings, PolicySettings
from policies.staleness import StalenessSettings
from policies.upstreams import Address, Destination, Pool
from policies.wasm import WasmEngine
from tests.fakes.clock import ManualClock
from tests.fakes.trust import ALLOW, FakeEngine, record, request, spiffe
from tests.support.engines import put_data
from tests.support.policy import workspace

ROLES, SEGMENTS, SITES = ("agent", "cook", "guard"), ("edge", "lab", "hall"), ("a", "b")
REVISIONS, EXCHANGES = 40, 120
HERE = Address("127.0.0.1", 1)


def random_workspace(chance: random.Random, before: dict[str, list[str]]) -> tuple[Workspace, dict[str, list[str]]]:
    """A workspace, most of which is as `before`: lines of YAML by section."""
    lines = {section: list(each) for section, each in before.items()}
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        section = chance.choice(tuple(lines))
        place = chance.randrange(len(lines[section]))
        name = lines[section][place].split(",")[0]
        lines[section][place] = _line(chance, section, name)
    text = {
        section: "\n".join(f"  - {{{line}}}" for line in each if "absent" not in line)
        for section, each in lines.items()
    }
    roles = "\n".join(f"  {role}: A {role}" for role in ROLES)
    return workspace(
        routes=f"routes:\n{text['routes']}\n",
        grants=f"roles:\n{roles}\ngrants:\n{text['grants']}\ndenies:\n{text['denies']}\n",
        segments=f"segments:\n{text['segments']}\n",
    ), lines


def _line(chance: random.Random, section: str, name: str) -> str:
    number = name[-1]
    match section:
        case "routes":
            prefix = f"/r{number}" if chance.random() < 0.8 else f"/r{number}/deep"
            also = chance.choice(
                ("", ", class: tolerant", ", segments: [edge]", ", tiers: [1]", ", upgrades: [websocket]")
            )
            return (
                f"{name}, prefix: {prefix}, upstreams: ['http://127.0.0.1:{chance.randint(1, 2)}'], kinds: [node]{also}"
            )
        case "grants":
            ends = chance.choice(("2030-01-01", "2031-01-01"))
            role, method = chance.choice(ROLES), chance.choice(("GET", "POST"))
            path = chance.choice(("/**", f"/r{number}/**", f"/r{number}/deep/x"))
            route = f"r{chance.randrange(4)}"
            return f"{name}, role: {role}, route: {route}, methods: [{method}], paths: ['{path}'], expires: {ends}"
        case "denies":
            route, role = f"r{chance.randrange(4)}", chance.choice(ROLES)
            return f"{name}, route: {route}, why: Because, roles: [{role}], paths: ['/r{number}/deep/**']"
        case _:
            return f"{name}, reaches: [{chance.choice(SEGMENTS)}]"


FIRST = {
    "routes": [f"name: r{i}, prefix: /r{i}, upstreams: ['http://127.0.0.1:1'], kinds: [node]" for i in range(4)],
    "grants": [
        f"id: g{i}, role: {ROLES[i % 3]}, route: r{i % 4}, methods: [GET], paths: ['/**'], expires: 2030-01-01"
        for i in range(9)
    ],
    "denies": ["id: d0, route: r0, why: Because, paths: [/r0/secret]"],
    "segments": [f"name: {segment}, reaches: [edge]" for segment in SEGMENTS],
}


@cache
def code() -> CompiledPolicy:
    found = workspace()
    return compile_policy(found.rego, found.data, CompileSettings())


@dataclass
class Site:
    """A decider over a store, and exchanges that it permitted."""

    engine: WasmEngine
    chance: random.Random

    def __post_init__(self) -> None:
        self.clock, self.store = ManualClock(), SnapshotStore()
        ids = DecisionIds(self.clock)
        self.decider = Decider(self.store, self.clock, StalenessSettings(), Obligations(self.clock), ids)
        self.store.apply(Heartbeat(self.clock.now() + 1e6, SnapshotNumbers(1, 0, 0, 0)))
        self.peers = [self.know(number) for number in range(12)]

    def know(self, number: int) -> Peer:
        chance, identity = self.chance, SpiffeId("fleet.test", Kind.NODE, f"n{number}")
        roles = tuple(role for role in ROLES if chance.random() < 0.6)
        where = {"tier": chance.randint(1, 2), "site": chance.choice(SITES), "segment": chance.choice(SEGMENTS)}
        self.store.apply(IdentityChanged(number, IdentityRecord(identity, State.ACTIVE, 1, roles, **where)))
        posture = Posture(AttestationClass.VIRTUAL, Verdict.PASSED)
        self.store.apply(PostureChanged(number, identity, posture, self.clock.now() + 1e6))
        return Peer(identity, f"{number:x}", 0.0, self.clock.now() + 1e6, b"")

    def enforce(self, found: Workspace, revision: int) -> None:
        put_data(self.engine, found.data)
        compiled = replace(code(), data=found.data)
        self.store.publish_policy(PolicyPart(revision, str(revision), self.engine, RouteTable(found.routes), compiled))

    def open(self) -> Exchange | None:
        """A random exchange, when it is permitted."""
        chance, policy = self.chance, self.store.current.policy
        assert policy is not None
        path = (f"r{chance.randrange(4)}", *chance.choice(((), ("deep",), ("deep", "x"), ("secret",))))
        method = chance.choice(("GET", "GET", "POST"))
        asked = CanonicalRequest(method, "get", "gateway.test", path, (), "", b"/")
        try:
            route = policy.routes.match(asked)
        except Exception:
            return None
        exchange = Exchange(chance.choice(self.peers), lambda reason: None)
        decision = asyncio.run(self.decider.decide(exchange.peer, asked, route, exchange))
        exchange.upstream = chance.choice(route.destinations)
        return exchange if isinstance(decision, Permit) else None

    def again(self, exchange: Exchange) -> Decision:
        return asyncio.run(self.decider.again(exchange))


@pytest.fixture
def engine() -> Iterator[WasmEngine]:
    made = WasmEngine(code(), PolicySettings(decision_timeout=5.0))
    yield made
    made.stop()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_would_change_is_missed(engine: WasmEngine, seed: int) -> None:
    chance = random.Random(seed)
    site, lines = Site(engine, chance), FIRST
    found, lines = random_workspace(chance, lines)
    site.enforce(found, 1)
    open_now: list[Exchange] = []
    spared = cut = 0
    for revision in range(2, REVISIONS):
        open_now += [each for each in (site.open() for _ in range(EXCHANGES - len(open_now))) if each is not None]
        before = site.store.current.policy
        found, lines = random_workspace(chance, lines)
        site.enforce(found, revision)
        assert site.store.current.policy is not None
        difference = RevisionDifference(before, site.store.current.policy)
        kept = []
        for exchange in open_now:
            decision = site.again(exchange)
            concerned = difference.concerns(exchange)
            if not concerned:
                spared += 1
                assert _same(exchange.permit, decision), (lines, exchange.permit, decision)
            if concerned and difference.routes is not None and exchange.upstream not in difference.upstreams:
                assert exchange.route is not None
                assert exchange.route.name in difference.routes
            if isinstance(decision, Permit):
                exchange.permit = decision
                kept.append(exchange)
            cut += not isinstance(decision, Permit)
        open_now = kept
    assert spared > 500  # what a change does not touch costs nothing
    assert cut > 50


def _same(permit: Permit | None, decision: Decision) -> bool:
    """By the same grant, until the same deadline, under the same obligations."""
    if permit is None or not isinstance(decision, Permit):
        return False
    names = ("grant", "deadline", "reasons", "obligations")
    return all(getattr(permit, name) == getattr(decision, name) for name in names)


def part(*routes: Route, compiled: CompiledPolicy | None = None) -> PolicyPart:
    return PolicyPart(1, "", FakeEngine(), RouteTable(routes), compiled or code())


def opened(route: Route, upstream: Address | None = HERE) -> Exchange:
    """With no `upstream`, it is led nowhere yet."""
    store, clock = SnapshotStore(), ManualClock()
    store.apply(Heartbeat(clock.now(), SnapshotNumbers(1, 0, 0, 0)))
    store.apply(IdentityChanged(1, record()))
    store.publish_policy(PolicyPart(1, "", FakeEngine(lambda query: ALLOW, cached=True), RouteTable((route,))))
    decider = Decider(store, clock, StalenessSettings(), Obligations(clock), DecisionIds(clock))
    exchange = Exchange(Peer(spiffe(), "aa", 0.0, FOREVER, b""), lambda reason: None)
    assert decider.decide_now(exchange.peer, request("GET", "a", "b"), route, exchange) is not None
    if upstream is not None:
        exchange.upstream = Destination(upstream, None)
    return exchange


def leading(*addresses: Address) -> Route:
    return Route("api", RouteType.HTTP, "*", (), Pool("api", addresses))


API = leading(HERE)


@pytest.mark.parametrize(
    ("after", "concerned", "reason"),
    [
        ((API,), False, None),
        ((), True, Reason.ROUTE_UNKNOWN),
        ((replace(API, name="other"),), True, Reason.ROUTE_CHANGED),
        ((API, replace(API, name="nearer", prefix=("a",))), True, Reason.ROUTE_CHANGED),
        ((API, replace(API, name="exact", host="control.example")), True, Reason.ROUTE_CHANGED),
        ((API, replace(API, name="aside", prefix=("b",))), False, None),
        ((leading(Address("127.0.0.1", 2)),), True, Reason.ROUTE_CHANGED),
        ((leading(HERE, Address("127.0.0.1", 2)),), True, None),
        ((replace(API, response_timeout=1.0),), True, None),
    ],
)
def test_routes(after: tuple[Route, ...], concerned: bool, reason: Reason | None) -> None:
    exchange = opened(API)
    assert RevisionDifference(part(API), part(*after)).concerns(exchange) is concerned
    assert decided_again(exchange, after) == reason


def test_what_is_led_nowhere_yet_is_not_led_astray() -> None:
    assert decided_again(opened(API, None), (API,)) is None


def decided_again(exchange: Exchange, after: tuple[Route, ...]) -> Reason | None:
    """Why it is denied under `after`, or None."""
    store, clock = SnapshotStore(), ManualClock()
    store.apply(Heartbeat(clock.now(), SnapshotNumbers(1, 0, 0, 0)))
    store.apply(IdentityChanged(1, record()))
    store.publish_policy(PolicyPart(2, "", FakeEngine(lambda query: ALLOW, cached=True), RouteTable(after)))
    decider = Decider(store, clock, StalenessSettings(), Obligations(clock), DecisionIds(clock))
    decision = decider.again_now(exchange)
    assert decision is not None
    return None if isinstance(decision, Permit) else decision.reasons[0]


def test_an_upstream_that_is_gone_is_named() -> None:
    gone = Address("127.0.0.1", 9)
    difference = RevisionDifference(part(leading(HERE, gone)), part(API))
    assert difference.upstreams == {Destination(gone, None)}
    assert difference.concerns(opened(API, gone))


def test_without_what_the_engines_were_loaded_from_everything_is_concerned() -> None:
    for before in (None, PolicyPart(1, "", FakeEngine(), RouteTable((API,)))):
        difference = RevisionDifference(before, part(API))
        assert difference.routes is None
        assert difference.concerns(opened(API))

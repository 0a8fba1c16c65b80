"""Decisions with the cache are those without it, whatever changes in between: facts, epochs, deadlines, the age of what
is known, revisions back and forth. Over random policies, and over one whose grants end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identity import (
    AttestationClass,
    Change,
    Heartbeat,
    IdentityChanged,
    Posture,
    PostureChanged,
    Revocation,
    SnapshotNumbers,
    Verdict,
)
from gateway.proxy.decide import Decider
from gateway.proxy.identify import Peer
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore
from gateway.streams.registry import Exchange
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.model import Decision, Denial, Permit
from policies.routes import Route, RouteType
from policies.settings import CacheSettings, CompileSettings
from policies.staleness import StalenessSettings
from policies.wasm import WasmEngine
from tests.fakes.clock import ManualClock
from tests.support import randompolicies
from tests.support.engines import GRANTS, PATIENT, SMALL, compiled, small
from tests.support.workspaces import node, query

BEGIN = 1_800_000_000
NAMES, ROUTES = ("n1", "n2"), ("r", "short", "a")
TELLING = """decision := {"allow": true, "reasons": ["granted"], "obligations": [{"kind": "x", "found": [
    input.staleness, input.identity.attestation, input.identity.tier, input.identity.site, input.identity.labels,
    input.request.method, input.request.path, input.route, input.identity.name,
]}]}"""
Policies = list[tuple[CompiledPolicy, WasmEngine]]
_TEXTS = st.sampled_from(("a", "b", ""))
_NAMES = st.sampled_from(NAMES)
STEPS = st.one_of(
    st.tuples(
        st.just("ask"),
        _NAMES,
        st.sampled_from(ROUTES),
        st.sampled_from(("GET", "PUT")),
        st.sampled_from((("a",), ("b", "c"), ())),
    ),
    st.tuples(st.just("wait"), st.sampled_from((1, 20, 59, 61, 400))),
    st.tuples(st.just("hear")),
    st.tuples(
        st.just("attest"),
        _NAMES,
        st.builds(Posture, st.sampled_from(AttestationClass), st.sampled_from((Verdict.PASSED, *Verdict))),
        st.sampled_from((10, 1000)),
    ),
    st.tuples(
        st.just("describe"),
        _NAMES,
        st.fixed_dictionaries(
            {"site": _TEXTS, "tier": st.integers(1, 2), "labels": st.dictionaries(st.sampled_from("ab"), _TEXTS)}
        ),
    ),
    st.tuples(st.just("revoke"), _NAMES),
    st.tuples(st.just("revise"), st.integers(0, 4)),
)


class NoObligations:
    """Meets whatever is demanded."""

    def unmet(self, permit: Permit) -> None:
        return None


class Side:
    """A store and a decider, which see every change."""

    def __init__(self, clock: ManualClock) -> None:
        self.store = SnapshotStore()
        numbers = iter(range(10_000))
        self.decider = Decider(
            self.store,
            clock,
            StalenessSettings(),
            NoObligations(),  # type: ignore[arg-type]
            lambda: str(next(numbers)),
        )


class Both:
    """The same with the cache and without, one cache for all revisions."""

    def __init__(self, policies: Policies) -> None:
        self.clock = ManualClock(BEGIN)
        self.cached, self.plain = Side(self.clock), Side(self.clock)
        cache = DecisionCache(CacheSettings(entries=16))
        self._engines = [(CachedEngine(engine, policy, cache), engine) for policy, engine in policies]
        self._records = {name: node(name, roles=("agent",)) for name in NAMES}
        self._peers = {name: Peer(self._records[name].id, name, 0.0, BEGIN + 3000, b"") for name in NAMES}
        self._revision = 0
        self.take("revise", 0)
        for name in NAMES:
            self.take("describe", name, {})
            self.take("attest", name, Posture(AttestationClass.HARDWARE, Verdict.PASSED), 5000)
        self.take("hear")

    def take(self, step: str, *about: Any) -> None:
        getattr(self, step)(*about)

    def ask(self, name: str, route: str, method: str, path: tuple[str, ...]) -> None:
        asked = query(route, method, path).request
        for _ in range(2):
            found = self._decide(self.cached, name, asked, route)
            assert found == self._decide(self.plain, name, asked, route)

    def wait(self, seconds: int) -> None:
        self.clock.set_wall(self.clock.now() + seconds)

    def hear(self) -> None:
        self._apply(Heartbeat(self.clock.now(), SnapshotNumbers(0, 0, 0, 0)))

    def attest(self, name: str, posture: Posture, seconds: int) -> None:
        until = self.clock.now() + seconds
        self._apply(PostureChanged(1, self._records[name].id, posture, until))

    def describe(self, name: str, changes: dict[str, Any]) -> None:
        record = self._records[name]
        self._records[name] = record = replace(record, epoch=record.epoch + 1, **changes)
        self._apply(IdentityChanged(1, record))

    def revoke(self, name: str) -> None:
        self._apply(Revocation(1, self._records[name].id, "", "superseded", self.clock.now()))

    def revise(self, index: int) -> None:
        self._revision += 1
        for side, engine in zip((self.cached, self.plain), self._engines[index % len(self._engines)], strict=True):
            side.store.publish_policy(PolicyPart(self._revision, str(index), engine, RouteTable()))

    def _apply(self, change: Change) -> None:
        for side in (self.cached, self.plain):
            side.store.apply(change)

    def _decide(self, side: Side, name: str, asked: Any, route: str) -> object:
        peer = self._peers[name]
        way = Route(route, RouteType.HTTP, "*", (), ())
        return _told(side.decider.decide_now(peer, asked, way, Exchange(peer, lambda reason: None)))


@pytest.fixture(scope="module")
def policies() -> Iterator[Policies]:
    """Two pairs, each of one code over two data: their keys differ by the digest alone. And one that tells what it
    reads."""
    random_one = _accepted(1)
    withdrawn = {"workspace": {"grants": {"r": GRANTS["workspace"]["grants"]["r"]}}}
    wanted = [
        small(),
        compile_policy(SMALL, withdrawn, CompileSettings()),
        random_one,
        compile_policy(random_one.rego, {"tables": {"a": {"c": 2}}, "list": []}, CompileSettings()),
        compiled(TELLING),
    ]
    found = [(policy, WasmEngine(policy, PATIENT)) for policy in wanted]
    yield found
    for _, engine in found:
        engine.stop()


@given(first=st.integers(0, 4), steps=st.lists(STEPS, min_size=8, max_size=40))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_cache_changes_no_decision(policies: Policies, first: int, steps: list[tuple[Any, ...]]) -> None:
    both = Both(policies)
    both.take("revise", first)
    for step in steps:
        both.take(*step)
        both.take("ask", "n1", "short", "GET", ("a",))


def test_the_steps_lead_to_every_kind_of_end(policies: Policies) -> None:
    """The property above would hold of decisions that never change."""
    both, seen = Both(policies), set()
    for step in (
        ("hear",),
        ("attest", "n1", Posture(AttestationClass.HARDWARE, Verdict.FAILED), 1000),
        ("attest", "n1", Posture(AttestationClass.HARDWARE, Verdict.PASSED), 10),
        ("wait", 20),
        ("attest", "n1", Posture(AttestationClass.HARDWARE, Verdict.PASSED), 1000),
        ("wait", 61),
        ("revise", 1),
        ("revoke", "n1"),
    ):
        both.take(*step)
        seen.add(both._decide(both.cached, "n1", query("short", "GET", ("a",)).request, "short")[1])  # type: ignore[index]
    assert len(seen) >= 5


def _told(decision: Decision | None) -> object:
    """What is decided, without what differs from one decision to the next."""
    assert decision is not None
    if isinstance(decision, Denial):
        return False, decision.reasons, decision.facts
    return True, decision.reasons, decision.grant, decision.deadline, decision.obligations


def _accepted(seed: int) -> CompiledPolicy:
    """Of the random policies that OPA's type checker takes, one for this seed."""
    for attempt in range(seed * 1000, seed * 1000 + 30):
        try:
            return compiled(randompolicies.query_policy(attempt), randompolicies.DATA)
        except Fault:
            continue
    raise AssertionError("OPA refuses thirty random policies in a row")

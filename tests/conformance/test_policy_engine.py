"""One suite for every engine behind `policies.engine.PolicyEngine`: embedded Wasm, a real OPA server, and both with the
cache before them. Small policies, then the default policy, on which all must agree."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from foundation.identifiers import Kind
from foundation.identity import AttestationClass, Verdict
from foundation.reasons import Reason
from policies.cached import CachedEngine
from policies.compile import compile_policy
from policies.engine import CompiledPolicy, PolicyEngine
from policies.loading import load_engine
from policies.model import Answer, Query, Staleness
from policies.opa_server import OpaServerEngine
from policies.settings import CompileSettings, PolicySettings
from policies.wasm import WasmEngine
from tests.fakes.clock import ManualClock
from tests.support.engines import compiled, small
from tests.support.opa import OpaProcess
from tests.support.policy import starter, workspace
from tests.support.workspaces import node, query

Load = Callable[[CompiledPolicy], Awaitable[PolicyEngine]]
PATHS = (("version",), ("models", "a"), ("v3", "kv", "range"), ("v3", "maintenance", "snapshot"), ())
ALLOWED = query(route="r", path=("b", "c"), roles=("agent",))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpaProcess]:
    process = OpaProcess(tmp_path_factory.mktemp("opa"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(params=["wasm", "opa", "cached wasm", "cached opa"])
async def load(request: pytest.FixtureRequest, server: OpaProcess) -> AsyncIterator[Load]:
    kind, made = request.param.split()[-1], []
    settings = PolicySettings(engine=kind, decision_timeout=5.0, server=server.settings)

    async def load(policy: CompiledPolicy) -> PolicyEngine:
        engine: PolicyEngine
        if request.param.startswith("cached"):
            engine = await load_engine(policy, settings, ManualClock())
        elif kind == "wasm":
            engine = WasmEngine(policy, settings)
        else:
            engine = await OpaServerEngine.load(policy, settings, ManualClock())
        made.append(engine)
        return engine

    yield load
    for engine in made:
        await engine.close()


async def test_a_permit_has_its_grant_end_and_obligations(load: Load) -> None:
    found = await (await load(small())).decide(ALLOWED)
    assert (found.allow, found.reasons, found.grant, found.deadline) == (True, (Reason.GRANTED,), "g1", 2_000_000_000.5)
    assert [each.kind for each in found.obligations] == ["rate"]
    assert dict(found.obligations[0].parameters) == {"per_second": 5, "burst": 10}


@pytest.mark.parametrize(
    "asked",
    [
        ALLOWED._replace(route="elsewhere"),
        query(route="r", path=("b",), roles=("agent",)),
        query(route="r", path=("b", "c"), roles=()),
        query(route="r", path=("b", "c"), roles=("agent",), labels={"barred": "yes"}),
    ],
)
async def test_a_denial_has_its_reason(load: Load, asked: Query) -> None:
    assert await (await load(small())).decide(asked) == Answer(False, (Reason.NO_GRANT,))


async def test_the_same_again_is_the_same(load: Load) -> None:
    engine = await load(small())
    answers = [await engine.decide(ALLOWED) for _ in range(3)]
    assert answers == [answers[0]] * 3
    assert engine.decide_now(ALLOWED) in (None, answers[0])


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        ("decision := true", Reason.ENGINE_ANSWER_INVALID),
        ('decision := "yes"', Reason.ENGINE_ANSWER_INVALID),
        ('decision := {"allow": 1, "reasons": ["granted"]}', Reason.ENGINE_ANSWER_INVALID),
        ('decision := {"allow": true, "reasons": ["nonsense"]}', Reason.ENGINE_ANSWER_INVALID),
        ('decision := {"allow": true, "reasons": ["granted"]} if input.route == "x"', Reason.ENGINE_ANSWER_INVALID),
        ("decision := 1 if input.now\ndecision := 2 if input.now", Reason.ENGINE_FAILED),
    ],
)
async def test_what_is_no_answer_is_a_denial_and_never_kept(load: Load, decision: str, reason: Reason) -> None:
    engine = await load(compiled(decision))
    assert await engine.decide(ALLOWED) == Answer(False, (reason,))
    assert not isinstance(engine, CachedEngine) or engine.peek(ALLOWED) is None


async def test_the_explanation_is_a_document(load: Load) -> None:
    assert await (await load(small())).explain(ALLOWED.to_input()) == {"roles": ["agent"], "text": "r at 1800000000"}


@pytest.mark.parametrize("text", ["\0", "é", "😀", '"\\', "\u2028", "\x7f", "a" * 5000])
async def test_texts_arrive_unchanged(load: Load, text: str) -> None:
    same = 'decision := {"allow": true, "reasons": ["granted"], "grant": input.request.path[0]}'
    odd = ALLOWED._replace(request=replace(ALLOWED.request, path=(text,)))
    assert (await (await load(compiled(same))).decide(odd)).grant == text


async def test_integers_arrive_whole(load: Load) -> None:
    same = 'decision := {"allow": true, "reasons": ["granted"]} if input.now == 9007199254740993'
    assert (await (await load(compiled(same))).decide(ALLOWED._replace(now=2**53 + 1))).allow


async def test_all_agree_on_the_default_policy(load: Load) -> None:
    policy = compiled_starter()
    engine, reference = await load(policy), WasmEngine(policy, PolicySettings(decision_timeout=5.0))
    allowed = 0
    for asked in _queries(random.Random(3), 250):
        expected = reference.decide_now(asked)
        assert await engine.decide(asked) == expected, asked
        allowed += expected.allow
    reference.stop()
    assert 10 < allowed < 240


async def test_all_agree_on_what_is_explained(load: Load) -> None:
    policy = compiled_starter()
    engine, reference = await load(policy), WasmEngine(policy, PolicySettings(decision_timeout=5.0))
    for asked in _queries(random.Random(4), 30):
        assert await engine.explain(asked.to_input()) == await reference.explain(asked.to_input())
    reference.stop()


async def test_all_agree_on_segments_by_selector(load: Load) -> None:
    policy = compiled_segments()
    engine, reference = await load(policy), WasmEngine(policy, PolicySettings(decision_timeout=5.0))
    allowed = 0
    for asked in _streams(random.Random(5), 150):
        expected = reference.decide_now(asked)
        assert await engine.decide(asked) == expected, asked
        allowed += expected.allow
        if len(asked.identity.labels) == 2:
            assert await engine.explain(asked.to_input()) == await reference.explain(asked.to_input())
    reference.stop()
    assert 10 < allowed < 140


@functools.cache
def compiled_segments() -> CompiledPolicy:
    found = workspace(
        routes="routes: [{name: r, type: stream, service: s, kinds: [node, operator], to: [db, north]}]",
        grants="roles: {agent: a}\ngrants: [{id: g, role: agent, route: r, expires: 2030-01-01}]",
        segments="segments: [{name: web, reaches: [db]}, {name: db, select: {labels: {role: [db], 'a/b.c': [x]}}},"
        " {name: north, select: {sites: [n], tiers: [1, 2]}, reaches: [north, db]}, {name: big, select: {tiers: [1]}}]",
    )
    return compile_policy(found.rego, found.data, CompileSettings())


def _streams(chance: random.Random, count: int) -> Iterator[Query]:
    for _ in range(count):
        labels = {key: chance.choice(("db", "x")) for key in ("role", "a/b.c", "other") if chance.random() < 0.8}
        site, segment = chance.choice(("n", "s")), chance.choice(("web", "web", ""))
        target = node("t", chance.choice(("db", "")), labels=labels, site=site, tier=chance.choice((1, 2, 3)))
        own = dict(list(labels.items())[::-1])
        yield query("r", path=(), roles=("agent",), segment=segment, site=chance.choice(("n", "s")), labels=own,
                    tier=chance.choice((1, 3)), target=target, target_posture=query().posture)  # fmt: skip


@functools.cache
def compiled_starter() -> CompiledPolicy:
    return compile_policy(starter().rego, starter().data, CompileSettings())


def _queries(chance: random.Random, count: int) -> Iterator[Query]:
    for _ in range(count):
        target = node("t", segment=chance.choice(("edge", "lab")))
        yield query(
            route=chance.choice(("control-plane", "models", "nowhere", "api.fleet.list")),
            method=chance.choice(("GET", "GET", "POST", "DELETE")),
            path=chance.choice(PATHS),
            roles=chance.choice((("edge-agent",), ("viewer",), ("security", "edge-agent"), ())),
            kind=chance.choice((Kind.NODE, Kind.NODE, Kind.OPERATOR, Kind.SERVICE)),
            attestation=chance.choice(tuple(AttestationClass)),
            verdict=chance.choice((Verdict.PASSED, Verdict.PASSED, Verdict.FAILED)),
            tier=chance.choice((1, 2, 3)),
            segment=chance.choice(("edge", "lab", "")),
            site=chance.choice(("site-a", "")),
            upgrade=chance.choice(("", "", "websocket")),
            staleness=chance.choice((Staleness.FRESH, *Staleness)),
            target=chance.choice((None, target)),
            target_posture=query().posture,
        )

"""Random policies, inputs and revisions: Wasm answers as an OPA server does, and the cache as the engine behind it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import Kind
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.model import Query, Staleness
from policies.opa_server import OpaServerEngine
from policies.settings import CacheSettings, CompileSettings, PolicySettings
from policies.wasm import WasmEngine
from tests.fakes.clock import ManualClock
from tests.support import randompolicies
from tests.support.engines import PATIENT, answer, compiled, wasm
from tests.support.opa import OpaProcess
from tests.support.queries import QUERIES
from tests.support.workspaces import query

_POLICIES = 8
_DOCUMENTS = 40
_OTHER_DATA = {**randompolicies.DATA, "tables": {"a": {"c": 2}, "x": {"a": [1, 2]}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpaProcess]:
    process = OpaProcess(tmp_path_factory.mktemp("opa"))
    process.start()
    yield process
    process.stop()


Revisions = Sequence[tuple[CompiledPolicy, WasmEngine]]


@pytest.fixture(scope="module", params=range(_POLICIES))
def revisions(request: pytest.FixtureRequest) -> Iterator[Revisions]:
    """Two revisions of one random policy, with other data, and their engines."""
    first = _accepted(randompolicies.query_policy, request.param)
    second = compile_policy(first.rego, _OTHER_DATA, CompileSettings())
    found = [(policy, WasmEngine(policy, PATIENT)) for policy in (first, second)]
    yield found
    for _, engine in found:
        engine.stop()


@pytest.mark.parametrize("seed", range(_POLICIES))
async def test_wasm_answers_as_the_server_does(seed: int, server: OpaProcess) -> None:
    policy = _accepted(randompolicies.policy, seed)
    chance = random.Random(seed)
    theirs = await OpaServerEngine.load(
        policy, PolicySettings(decision_timeout=5.0, server=server.settings), ManualClock()
    )
    with wasm(policy) as ours:
        for _ in range(_DOCUMENTS):
            document = randompolicies.document(chance)
            assert _ours(ours, document) == await _theirs(theirs, document), document
    await theirs.close()


@given(queries=st.lists(QUERIES, min_size=2, max_size=25))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_cache_answers_as_the_engine_does(revisions: Revisions, queries: list[Query]) -> None:
    """Two revisions with one cache between them: the second must not be given answers of the first."""
    cache = DecisionCache(CacheSettings(entries=16))
    pairs = [(engine, CachedEngine(engine, policy, cache)) for policy, engine in revisions]
    for asked in [*queries, *reversed(queries)]:
        for engine, cached in pairs:
            expected = engine.decide_now(asked)
            assert cached.peek(asked) in (None, expected)
            assert asyncio.run(cached.decide(asked)) == expected
            assert cached.peek(asked) == expected


def test_the_random_policies_tell_queries_apart(revisions: Revisions) -> None:
    """The property above would hold of policies that always answer the same."""
    sides = itertools.product(
        ("a", "b"), (1, 2), ({}, {"a": "b"}), (Kind.NODE, Kind.SERVICE), ("GET", "PUT"), ("x", "y")
    )
    asked = [
        query(route=a, tier=b, labels=c, kind=d, method=e, site=f, name=f, roles=(a,), staleness=Staleness(stale))
        for (a, b, c, d, e, f), stale in itertools.product(sides, ("fresh", "stale"))
    ]
    for _, engine in revisions:
        assert len({repr(engine.decide_now(each)) for each in asked}) > 1


def _accepted(write: Any, seed: int) -> CompiledPolicy:
    """Of the random policies that OPA's type checker takes, one for this seed."""
    for attempt in range(seed * 1000, seed * 1000 + 30):
        try:
            return compiled(write(attempt), randompolicies.DATA)
        except Fault:
            continue
    raise AssertionError("OPA refuses thirty random policies in a row")


def _ours(engine: WasmEngine, document: Mapping[str, Any]) -> str:
    try:
        return _plain(answer(engine, document))
    except Fault as fault:
        return fault.reason.code


async def _theirs(engine: OpaServerEngine, document: Mapping[str, Any]) -> str:
    try:
        return _plain((await engine._evaluate("sallyport/decision", document)).get("answer"))
    except Fault as fault:
        return fault.reason.code


def _plain(value: Any) -> str:
    """Without the order of arrays, since sets have none."""
    return json.dumps(_ordered(value), sort_keys=True)


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        return sorted((_ordered(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return {key: _ordered(item) for key, item in value.items()} if isinstance(value, dict) else value

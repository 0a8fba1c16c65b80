"""What a decision costs: the default policy, 10,000 nodes, 500 grants, 200 routes, in process, from query to answer.

Uncached: every query is evaluated. Cached: each identity asks again what it asked before. The peer is an OPA server
over loopback with the same policy and data, asked through the same port.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from benchmarks.figure import Figure, at_most
from foundation.clock import SystemClock
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.lifecycle.workspace import default_policy, load_workspace
from policies.model import Answer, Query
from policies.opa_server import OpaServerEngine
from policies.settings import CompileSettings, PolicySettings
from policies.wasm import WasmEngine
from tests.support.opa import OpaProcess
from tests.support.workspaces import fleet_workspace, query

NODES, GRANTS, ROUTES, ROLES = 10_000, 500, 200, 8
UNCACHED_GOAL_US = 150
CACHED_GOAL_US = 10
_COMMAND = "python -m benchmarks.run decision"
_PEER = "OPA server over loopback, p50"
_ROUNDS = 20_000
_PEER_ROUNDS = 1_000


def figures() -> list[Figure]:
    """The figures of this benchmark, measured now."""
    workspace = load_workspace(fleet_workspace(ROUTES, GRANTS, ROLES), default_policy())
    compiled = compile_policy(workspace.rego, workspace.data, CompileSettings())
    queries = fleet(random.Random(1))  # noqa: S311 - a load, not a secret
    return asyncio.run(_measure(compiled, queries))


async def _measure(compiled: CompiledPolicy, queries: Sequence[Query]) -> list[Figure]:
    engine = WasmEngine(compiled, PolicySettings())
    cached = CachedEngine(engine, compiled, DecisionCache(PolicySettings().cache))
    try:
        uncached = sorted(_time(engine.decide_now, queries, _ROUNDS))
        for each in queries:
            await cached.decide(each)
        hits = sorted(_time(cached.peek, queries, _ROUNDS))
    finally:
        await cached.close()
    peer = _us(await _ask_server(compiled, queries), 0.5)
    return [
        _figure("decision_uncached_p50_us", _us(uncached, 0.5), UNCACHED_GOAL_US, peer),
        _figure("decision_cached_p50_us", _us(hits, 0.5), CACHED_GOAL_US, peer),
    ]


def _figure(name: str, value: float, goal: float, peer: float) -> Figure:
    figure = at_most(name, value, "us", goal, _COMMAND)
    return replace(figure, peer=_PEER, peer_value=round(peer, 1), ratio=round(value / peer, 4))


def fleet(random_: random.Random) -> list[Query]:
    """One query of each node: half of them allowed, the rest refused for one reason or another."""
    found = []
    for number in range(NODES):
        grant = random_.randrange(GRANTS)
        role = f"role-{grant % ROLES if random_.random() < 0.75 else random_.randrange(ROLES)}"
        route = f"r{grant % ROUTES}"
        path = random_.choice(
            [(route, "status"), (route, "items", str(number)), (route, "files", "a", "b"), (route, "x")]
        )
        found.append(query(route=route, path=path, roles=("edge-agent", role), name=f"n{number}"))
    return found


def _time(ask: Callable[[Query], Answer | None], queries: Sequence[Query], rounds: int) -> Iterator[float]:
    """Seconds that each of `rounds` questions took."""
    for each in islice(cycle(queries), rounds):
        begun = time.perf_counter()
        answer = ask(each)
        yield time.perf_counter() - begun
        assert answer is not None


async def _ask_server(compiled: CompiledPolicy, queries: Sequence[Query]) -> list[float]:
    """Sorted seconds that an OPA server took for some of `queries`."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        server = OpaProcess(Path(folder))
        server.start()
        try:
            settings = PolicySettings(engine="opa", decision_timeout=5.0, server=server.settings)
            engine = await OpaServerEngine.load(compiled, settings, SystemClock())
            for each in queries[:_PEER_ROUNDS]:
                begun = time.perf_counter()
                await engine.decide(each)
                times.append(time.perf_counter() - begun)
            await engine.close()
        finally:
            server.stop()
    return sorted(times)


def _us(ordered: Sequence[float], share: float) -> float:
    return ordered[int(len(ordered) * share)] * 1e6

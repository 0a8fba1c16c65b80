"""What a decision costs: the default policy, 10,000 nodes, 500 grants, 200 routes, in process, from query to answer.

Uncached: every query is evaluated. Cached: each identity asks again what it asked before. The peer is an OPA server
over loopback with the same policy and data, asked through the same port.

`decision_10x_ratio` sets 100,000 nodes and 5,000 grants beside it, on the same routes and for the same roles, in turn.
The facts about who asks are looked up in the gateway's snapshot each time, as a request does, for that is where the
number of nodes could be felt; the engine could feel the number of grants.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.figure import Figure, Pairs, at_most
from foundation.clock import SystemClock
from foundation.identity import IdentityChanged, PostureChanged
from gateway.snapshot import SnapshotStore
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.lifecycle.workspace import default_policy, load_workspace
from policies.model import Answer, Query
from policies.opa_server import OpaServerEngine
from policies.settings import CacheSettings, CompileSettings, PolicySettings
from policies.wasm import WasmEngine
from tests.support.opa import OpaProcess
from tests.support.workspaces import fleet_workspace, query

NODES, GRANTS, ROUTES, ROLES = 10_000, 500, 200, 8
UNCACHED_GOAL_US = 150
CACHED_GOAL_US = 10
TIMES, TIMES_GOAL = 10, 1.3
_COMMAND = "python -m benchmarks.run decision"
_PEER = "OPA server over loopback, p50"
_BATCH = 1_000
_PEER_ROUNDS = 1_000

Ask = Callable[[Query], Answer | None]


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet, what it asks (in no order), and a policy that answers."""

    store: SnapshotStore
    queries: Sequence[Query]
    compiled: CompiledPolicy
    engine: WasmEngine
    cached: CachedEngine

    def uncached(self, asked: Query) -> Answer | None:
        self._facts(asked)
        return self.engine.decide_now(asked)

    def remembered(self, asked: Query) -> Answer | None:
        self._facts(asked)
        return self.cached.peek(asked)

    def _facts(self, asked: Query) -> None:
        """What a request looks up of who asks."""
        id_, snapshot = asked.identity.id, self.store.current
        assert snapshot.inventory.get(id_) is not None
        assert snapshot.postures.get(id_) is not None
        assert self.store.attested_until(id_)


def figures(short: bool) -> Iterator[Figure]:
    batches = 4 if short else 20
    one, ten = (_fleet(NODES * times, GRANTS * times) for times in (1, TIMES))
    peer = _us(asyncio.run(_ask_server(one.compiled, one.queries)), 0.5)
    uncached = _us(sorted(_times(one.engine.decide_now, one.queries, batches * _BATCH)), 0.5)
    yield _beside_server("decision_uncached_p50_us", uncached, UNCACHED_GOAL_US, peer)
    asyncio.run(_remember(one))
    cached = _us(sorted(_times(one.cached.peek, one.queries, batches * _BATCH)), 0.5)
    yield _beside_server("decision_cached_p50_us", cached, CACHED_GOAL_US, peer)
    yield _ten_times("decision_10x_ratio", one, one.uncached, ten, ten.uncached, batches)
    asyncio.run(_remember(ten))
    yield _ten_times("decision_cached_10x_ratio", one, one.remembered, ten, ten.remembered, batches)


def _fleet(nodes: int, grants: int) -> Fleet:
    workspace = load_workspace(fleet_workspace(ROUTES, grants, ROLES), default_policy())
    compiled = compile_policy(workspace.rego, workspace.data, CompileSettings())
    engine = WasmEngine(compiled, PolicySettings(decision_timeout=5.0))  # whatever else the machine does
    cached = CachedEngine(engine, compiled, DecisionCache(CacheSettings(entries=2 * nodes, bytes=1 << 30)))
    store, queries = SnapshotStore(), fleet(random.Random(1), nodes, grants)  # noqa: S311 - a load, not a secret
    for number, each in enumerate(queries, 1):
        store.apply(IdentityChanged(number, each.identity))
        store.apply(PostureChanged(number, each.identity.id, each.posture, float(each.now + 3600)))
    return Fleet(store, queries, compiled, engine, cached)


def fleet(random_: random.Random, nodes: int, grants: int) -> list[Query]:
    """One query of each node, in no order: half of them allowed, the rest refused for one reason or another."""
    found = []
    for number in range(nodes):
        grant = random_.randrange(grants)
        granted = (grant + grant // ROUTES) % ROLES
        role = f"role-{granted if random_.random() < 0.75 else random_.randrange(ROLES)}"
        route = f"r{grant % ROUTES}"
        path = random_.choice(
            [(route, "status"), (route, "items", str(number)), (route, "files", "a", "b"), (route, "x")]
        )
        found.append(query(route=route, path=path, roles=("edge-agent", role), name=f"n{number}"))
    random_.shuffle(found)
    return found


async def _remember(one: Fleet) -> None:
    for each in one.queries:
        await one.cached.decide(each)


def _ten_times(name: str, one: Fleet, ask_one: Ask, ten: Fleet, ask_ten: Ask, batches: int) -> Figure:
    """The median of each batch of questions to `ten`, beside one to `one` right before it."""
    small: list[float] = []
    large: list[float] = []
    for batch in range(batches):
        for found, ask, whose in ((small, ask_one, one), (large, ask_ten, ten)):
            begin = batch * _BATCH % (len(whose.queries) - _BATCH)
            found.append(median(_times(ask, whose.queries[begin:], _BATCH)) * 1e6)
    peer = f"{NODES:,} nodes, {GRANTS} grants, p50"
    figure = Pairs(large, small, peer, most=TIMES_GOAL).figure(name, "us", _COMMAND)
    return replace(figure, value=figure.ratio or 0.0, unit="x", goal=f"at most {TIMES_GOAL:g}")


def _beside_server(name: str, value: float, goal: float, peer: float) -> Figure:
    figure = at_most(name, value, "us", goal, _COMMAND)
    return replace(figure, peer=_PEER, peer_value=round(peer, 1), ratio=round(value / peer, 4))


def _times(ask: Ask, queries: Sequence[Query], rounds: int) -> Iterator[float]:
    """Seconds that each of `rounds` questions took."""
    for each in islice(_over_and_over(queries), rounds):
        begun = time.perf_counter()
        answer = ask(each)
        yield time.perf_counter() - begun
        assert answer is not None


def _over_and_over(queries: Sequence[Query]) -> Iterator[Query]:
    while True:
        yield from queries


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

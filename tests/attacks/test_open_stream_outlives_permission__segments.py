"""Row "open stream outlives permission: segment change" (consul#6454), between nodes: a brokered stream ends when a
selector, a segment, a route or a node's own record no longer puts its ends where one reaches the other. The default
policy, compiled; one change at a time. Streams of other segments go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from foundation.identity import IdentityChanged
from foundation.reasons import Reason
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.settings import CompileSettings, PolicySettings
from policies.wasm import WasmEngine
from tests.fakes.trust import record
from tests.support.brokered import BrokeredPlane, Node, Use, settled
from tests.support.policy import workspace

ROUTES = """
routes:
  - {name: database, type: stream, service: postgres, kinds: [node], attestation: none, segments: [web],
     to: [store, cache]}
"""
GRANTS = "roles: {edge-agent: An agent}\ngrants: [{id: g, role: edge-agent, route: database, expires: 2090-01-01}]\n"
SEGMENTS = """
segments:
  - {name: web, reaches: [store, cache], networks: [10.20.0.0/16]}
  - {name: store, select: {labels: {role: [db]}, tiers: [1, 2], sites: [lab]}}
  - {name: cache, select: {labels: {role: [cache]}, regions: [eu]}}
"""
RECORDS: dict[str, dict[str, Any]] = {
    "a": {"segment": "web"},
    "b": {"segment": "", "labels": {"role": "db"}},
    "c": {"segment": "web"},
    "d": {"segment": "", "labels": {"role": "cache"}, "region": "eu"},
}


@cache
def code() -> CompiledPolicy:
    return compile_policy(*_parts(SEGMENTS, ROUTES), CompileSettings())


def _parts(segments: str, routes: str) -> tuple[Any, Any]:
    found = workspace(routes=routes, grants=GRANTS, segments=segments)
    return found.rego, found.data


class Joined:
    """A stream from `a` to `b`, and one from `c` to `d` that no change here ends."""

    def __init__(self, plane: BrokeredPlane) -> None:
        self.plane = plane
        self.engines: list[WasmEngine] = []
        self.nodes: dict[str, Node] = {}

    def publish(self, number: int, segments: str = SEGMENTS, routes: str = ROUTES) -> None:
        found = workspace(routes=routes, grants=GRANTS, segments=segments)
        compiled = replace(code(), data=found.data)
        assert found.rego == code().rego  # a change of data alone: not all is decided again
        self.engines.append(WasmEngine(compiled, PolicySettings(decision_timeout=5.0)))
        part = PolicyPart(number, str(number), self.engines[-1], RouteTable(found.routes), compiled)
        self.plane.store.publish_policy(part)

    def place(self, name: str, epoch: int, **changes: Any) -> None:
        facts = RECORDS[name] | changes
        self.plane.store.apply(IdentityChanged(epoch * 10 + ord(name), replace(record(name, epoch=epoch), **facts)))

    async def open(self) -> None:
        self.publish(2)
        for name in RECORDS:
            self.nodes[name] = await self.plane.node(name)
            self.place(name, 2)
        self.use, self.bystander = await self.nodes["a"].reach("b"), await self.nodes["c"].reach("d")
        assert (self.use.refusal, self.bystander.refusal) == (None, None)
        await self.plane.advance(0.5)  # they have outlived a tick: they are found by what they are indexed by

    async def wait_cut(self) -> None:
        await settled(lambda: self.use.cut is not None and self.nodes["b"].calls[0].cut is not None)
        await self.plane.advance(0.5)
        assert (self.use.cut, self.bystander.cut) == (Reason.CUT_BY_CHANGE, None)

    async def ask_again(self) -> Use:
        return await self.nodes["a"].reach("b")


@pytest.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Joined]:
    async with BrokeredPlane(tmp_path).running() as plane:
        registry = asyncio.create_task(plane.registry.run())
        made = Joined(plane)
        await made.open()
        yield made
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)
        for engine in made.engines:
            engine.stop()


REVISIONS = {
    "selector's label": {"segments": SEGMENTS.replace("[db]", "[ledger]")},
    "selector's tier": {"segments": SEGMENTS.replace("tiers: [1, 2]", "tiers: [1]")},
    "selector's site": {"segments": SEGMENTS.replace("sites: [lab]", "sites: [oslo]")},
    "segment's reach": {"segments": SEGMENTS.replace("reaches: [store, cache]", "reaches: [cache]")},
    "route's targets": {"routes": ROUTES.replace("to: [store, cache]", "to: [cache]")},
}


@pytest.mark.parametrize("change", REVISIONS)
async def test_a_revision_that_takes_the_way_away(joined: Joined, change: str) -> None:
    joined.publish(3, **REVISIONS[change])
    await joined.wait_cut()
    again = await joined.ask_again()
    assert again.refusal is not None
    assert again.refusal.reason is Reason.SEGMENT_FORBIDDEN


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a", {"segment": "elsewhere"}),
        ("b", {"labels": {"role": "retired"}}),
        ("b", {"labels": {}}),
        ("b", {"tier": 3}),
        ("b", {"site": "oslo"}),
    ],
)
async def test_a_record_that_no_longer_meets_the_selector(joined: Joined, name: str, changes: dict[str, Any]) -> None:
    joined.place(name, 3, **changes)
    await joined.wait_cut()
    again = await joined.ask_again()
    assert again.refusal is not None
    assert again.refusal.reason is Reason.SEGMENT_FORBIDDEN


async def test_what_changes_nothing_for_them_ends_neither(joined: Joined) -> None:
    joined.publish(3, SEGMENTS.replace("[cache]}, regions", "[cache, memo]}, regions").replace("10.20", "10.21"))
    joined.place("b", 3, labels={"role": "db", "serial": "7"})
    await joined.plane.advance(0.5)
    assert (joined.use.cut, joined.bystander.cut) == (None, None)

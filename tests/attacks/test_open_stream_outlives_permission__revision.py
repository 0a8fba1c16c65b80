"""Row "open stream outlives permission" (linkerd2#15548: deleting what policy depends on; consul#6454): a revision that
decides again only what it changes misses none of it. The default policy, compiled; real streams; everything that may
change in a workspace, one at a time. Streams that it does not touch go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from foundation.reasons import Reason
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.lifecycle.workspace import Workspace
from policies.settings import CompileSettings, PolicySettings
from policies.upstreams import Address, Pool
from policies.wasm import WasmEngine
from tests.attacks.test_open_stream_outlives_permission import FIRST, Watched
from tests.support.gateway import DataPlane, RawClient, gateway_to, request_bytes
from tests.support.policy import workspace

ROUTES = """routes:
  - {name: mine, prefix: /mine, upstreams: ['http://127.0.0.1:80'], kinds: [node], segments: [edge]}
  - {name: other, prefix: /other, upstreams: ['http://127.0.0.1:80'], kinds: [node]}
"""
GRANTS = """roles: {edge-agent: An agent}
grants:
  - {id: g1, role: edge-agent, route: mine, methods: [GET], paths: [/**], expires: 2090-01-01}
  - {id: g2, role: edge-agent, route: other, methods: [GET], paths: [/**], expires: 2090-01-01}
"""
SEGMENTS = "segments:\n  - {name: edge, reaches: [edge]}\n  - {name: lab}\n"
DENIES = "denies:\n  - {id: d1, route: mine, why: Because, roles: [edge-agent], paths: ['/mine/**']}\n"
NEARER = "  - {name: nearer, prefix: /mine/watch, upstreams: ['http://127.0.0.1:80'], kinds: [node]}\n"
NEARER_GRANT = "  - {id: g3, role: edge-agent, route: nearer, methods: [GET], paths: [/**], expires: 2090-01-01}\n"
FILES = {"routes": ROUTES, "grants": GRANTS, "segments": SEGMENTS}


@cache
def code() -> CompiledPolicy:
    found = workspace(**FILES)
    return compile_policy(found.rego, found.data, CompileSettings())


class Enforced:
    """Publishes workspaces to a data plane as a gateway enforces them: one compiled policy, other data."""

    def __init__(self, plane: DataPlane, here: Address, elsewhere: Address) -> None:
        self.plane, self.here, self.elsewhere = plane, here, elsewhere
        self.engines: list[WasmEngine] = []

    def publish(self, number: int, *, elsewhere: str = "", **files: str) -> None:
        found: Workspace = workspace(**{**FILES, **files})
        compiled = replace(code(), data=found.data)
        routes = [
            replace(route, pool=Pool(route.name, (self.elsewhere if route.name == elsewhere else self.here,)))
            for route in found.routes
        ]
        engine = WasmEngine(compiled, PolicySettings(decision_timeout=5.0))
        self.engines.append(engine)
        self.plane.store.publish_policy(PolicyPart(number, str(number), engine, RouteTable(routes), compiled))


@asynccontextmanager
async def watching(tmp_path: Path) -> AsyncIterator[tuple[Enforced, RawClient, RawClient]]:
    """A stream on each of both routes, and what publishes the next revision."""
    upstream, elsewhere = Watched(), Watched()
    async with elsewhere.running() as there, gateway_to(upstream, tmp_path) as plane:
        enforced = Enforced(plane, plane.routes[0].pool.addresses[0], there)
        enforced.publish(2)
        registry = asyncio.create_task(plane.registry.run())
        clients = [await plane.connect() for _ in range(2)]
        for client, path in zip(clients, ("/mine/watch", "/other/watch"), strict=True):
            client.send(request_bytes("GET", path))
            assert (await client.head())[0] == 200
            assert await client.reader.readexactly(len(FIRST)) == FIRST
        await plane.advance(0.5)  # both have outlived a tick: they are found by their route
        yield enforced, clients[0], clients[1]
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)
        for engine in enforced.engines:
            engine.stop()


CHANGES: dict[str, tuple[dict[str, Any], Reason]] = {
    "grant deleted": ({"grants": GRANTS.replace("route: mine", "route: other")}, Reason.NO_GRANT),
    "grant of another role": (
        {
            "grants": GRANTS.replace("role: edge-agent, route: mine", "role: cook, route: mine").replace(
                "An agent", "An agent, cook: A cook"
            )
        },
        Reason.ROLE_MISSING,
    ),
    "grant of another path": ({"grants": GRANTS.replace("[/**]", "[/mine/else]", 1)}, Reason.PATH_NOT_GRANTED),
    "deny": ({"grants": GRANTS + DENIES}, Reason.DENY_OVERRIDE),
    "segment": ({"routes": ROUTES.replace("segments: [edge]", "segments: [lab]")}, Reason.SEGMENT_FORBIDDEN),
    "kind": ({"routes": ROUTES.replace("kinds: [node]", "kinds: [operator]", 1)}, Reason.KIND_NOT_ALLOWED),
    "route deleted": (
        {
            "routes": "".join(line for line in ROUTES.splitlines(True) if "name: mine" not in line),
            "grants": "".join(line for line in GRANTS.splitlines(True) if "route: mine" not in line),
        },
        Reason.ROUTE_UNKNOWN,
    ),
    "a nearer route": ({"routes": ROUTES + NEARER, "grants": GRANTS + NEARER_GRANT}, Reason.ROUTE_CHANGED),
    "upstream": ({"elsewhere": "mine"}, Reason.ROUTE_CHANGED),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_a_revision_takes_away_is_cut_and_nothing_else(tmp_path: Path, change: str) -> None:
    files, reason = CHANGES[change]
    async with watching(tmp_path) as (enforced, mine, other):
        enforced.publish(3, **files)
        assert await mine.ended() == b""
        plane = enforced.plane
        assert [cut.because.reason for cut in plane.redecided] == [reason]
        assert (plane.registry.open_count, plane.metrics.answers[-1][1]) == (1, Reason.CUT_BY_CHANGE)
        enforced.publish(4, **files, **({} if "grants" in files else {"grants": GRANTS.replace("2090", "2091")}))
        await plane.advance(0.5)
        assert plane.registry.open_count == 1
        assert not other.reader.at_eof()

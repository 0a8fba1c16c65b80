"""Row "CRL or OCSP fails open" (pomerium#4257, smokescreen#293): revocations come as numbered changes with a heartbeat.
Where they are missing, old or cut short, a route is closed, or in the degraded mode that its class declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.identity import Heartbeat, Revocation, SnapshotNumbers
from policies.routes import Route, RouteClass
from tests.fakes.trust import record, spiffe
from tests.support.gateway import DataPlane, RawUpstream, route
from tests.support.policy import engine_of, workspace

CLASSES = ("critical", "standard", "tolerant")
ROUTES = "routes:\n" + "".join(
    f"  - {{name: {name}, prefix: /{name}, upstreams: ['http://127.0.0.1:80'], kinds: [node], class: {name}}}\n"
    for name in CLASSES
)
GRANTS = "roles: {edge-agent: Nodes}\ngrants:\n" + "".join(
    f"  - {{id: g-{name}, role: edge-agent, route: {name}, methods: [GET], paths: ['/{name}'], expires: 2040-01-01}}\n"
    for name in CLASSES
)
AGES = {"fresh": 0.0, "stale": 60.0, "expired": 7200.0, "never": 1e9}
OPEN = {
    "fresh": {"critical", "standard", "tolerant"},
    "stale": {"standard", "tolerant"},
    "expired": {"tolerant"},
    "never": {"tolerant"},
}


def _routes(upstream: Route) -> tuple[Route, ...]:
    (address,) = upstream.pool.addresses
    return tuple(route(address, name, prefix=(name,), route_class=RouteClass(name)) for name in CLASSES)


@pytest.mark.parametrize("age", AGES)
async def test_old_facts_close_what_does_not_tolerate_them(tmp_path: Path, age: str) -> None:
    policy = engine_of(workspace(routes=ROUTES, grants=GRANTS))
    async with RawUpstream().running() as address:
        plane = DataPlane(tmp_path, _routes(route(address)))
        plane.publish(engine=policy, revision=2)  # type: ignore[arg-type]  # the real one
        plane.store.heartbeat_at = plane.clock.now() - AGES[age]
        async with plane.running():
            client = await plane.connect()
            for name in CLASSES:
                answered = await client.get(f"/{name}")
                assert (answered.status == 200) is (name in OPEN[age]), name
                assert answered.status == 200 or answered.reason == "staleness_exceeded"
    await policy.close()


async def test_a_heartbeat_cannot_be_set_back(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, ())
    newest = plane.store.heartbeat_at
    plane.store.apply(Heartbeat(newest - 1000, SnapshotNumbers(1, 0, 0, 0)))
    assert plane.store.heartbeat_at == newest


async def test_a_revocation_stays_whatever_comes_after(tmp_path: Path) -> None:
    """An identity's record of before its revocation, told late, brings nothing back."""
    async with RawUpstream().running() as address:
        plane = DataPlane(tmp_path, (route(address),))
        async with plane.running():
            plane.store.apply(Revocation(1, spiffe("edge-1"), "", "key_compromise", plane.clock.now()))
            plane.know("edge-1")
            client = await plane.connect()
            answered = await client.get()
    assert (answered.status, answered.reason) == (403, "identity_revoked")
    assert record("edge-1").epoch == 1

"""Row "check-then-register race": an exchange registers before it is checked, so a change that comes at any moment of
its decision is seen. The revision flips in the middle, 10,000 times, and no permit of the old one stands."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from foundation.ports import DecisionEntry
from gateway.proxy.identify import Peer
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart
from gateway.streams.registry import Exchange
from policies.model import Answer, Denial, Query
from policies.paced import PacedEngine
from policies.settings import SlowSettings
from policies.upstreams import Address
from policies.wasm import WasmEngine
from tests.fakes.trust import ALLOW, DENY, FakeEngine, request, spiffe
from tests.support.engines import PATIENT, compiled
from tests.support.gateway import DataPlane, RawUpstream, Recorded, gateway_to, route

FLIPS = 10_000


class Flipping(FakeEngine):
    """Permits, and while it does so another revision is published, which denies."""

    def __init__(self, plane: DataPlane) -> None:
        super().__init__()
        self.plane = plane

    async def decide(self, query: Query) -> Answer:
        denying = FakeEngine(lambda query: DENY)
        self.plane.store.publish_policy(PolicyPart(2, "two", denying, RouteTable(self.plane.routes)))
        return ALLOW


async def test_a_revision_that_flips_during_the_decision_is_the_one_that_decides(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, (route(Address("127.0.0.1", 1)),))
    peer = Peer(spiffe(), "aa", 0.0, plane.clock.now() + 1000, b"")
    for _ in range(FLIPS):
        plane.publish(engine=Flipping(plane))
        exchange = Exchange(peer, lambda reason: None)
        plane.registry.register(exchange)
        decision = await plane.decider.decide(peer, request(), plane.routes[0], exchange)
        assert isinstance(decision, Denial)
        plane.registry.leave(exchange)


async def test_a_revision_that_flips_while_a_thread_evaluates_is_the_one_that_decides(tmp_path: Path) -> None:
    """A policy that takes long is asked in a thread: the loop, and with it every change, goes on meanwhile."""
    plane = DataPlane(tmp_path, (route(Address("127.0.0.1", 1)),))
    peer = Peer(spiffe(), "aa", 0.0, plane.clock.now() + 1000, b"")
    permitting, limits = compiled('decision := {"allow": true, "reasons": ["granted"]}'), SlowSettings(budget=0.0)
    slow = replace(PATIENT, slow=limits)
    engine = PacedEngine(WasmEngine(permitting, slow), slow)
    for flips in [False] * 2 + [True] * 200:  # the first two are measured, all that follow are made in threads
        plane.publish(engine=engine)
        exchange = Exchange(peer, lambda reason: None)
        plane.registry.register(exchange)
        deciding = asyncio.create_task(plane.decider.decide(peer, request(), plane.routes[0], exchange))
        await asyncio.sleep(0)
        assert deciding.done() is not flips
        if flips:
            plane.publish(engine=FakeEngine(lambda query: DENY), revision=2)
        assert isinstance(await deciding, Denial) is flips
        plane.registry.leave(exchange)
    await engine.close()


class FlippingRecorder(Recorded):
    """Flips the revision between a permit and what would follow from it."""

    plane: DataPlane

    def record(self, entry: DecisionEntry) -> None:
        super().record(entry)
        if entry.allow:
            self.plane.publish(engine=FakeEngine(lambda query: DENY, cached=True), revision=2)


async def test_a_revision_that_flips_before_the_dial_is_the_one_that_decides(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        recorder = FlippingRecorder()
        recorder.plane = plane
        plane.services.records._recorder = recorder
        client = await plane.connect()
        for _ in range(500):
            plane.publish(engine=FakeEngine(cached=True))
            assert (await client.get()).status == 403
        assert [entry.allow for entry in recorder.entries] == [True, False] * 500
    assert upstream.dials == 0

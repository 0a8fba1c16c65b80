"""Row "open stream outlives permission" (envoy#14504, pomerium#1279, tailscale#859, consul#6454), between nodes: a
brokered stream ends when either side's permission ends, wherever that side's tunnel is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.identity import (
    AttestationClass,
    IdentityChanged,
    Posture,
    PostureChanged,
    Revocation,
    State,
    Verdict,
)
from foundation.reasons import Reason
from policies.model import Answer, Query
from tests.fakes.trust import ALLOW, DENY, FakeEngine, record, spiffe
from tests.support.brokered import BrokeredPlane, Node, Use, settled

PASSED = Posture(AttestationClass.HARDWARE, Verdict.PASSED)
FAILED = Posture(AttestationClass.HARDWARE, Verdict.FAILED)


class Joined:
    """A stream from `a` to `b` that runs, and one from `c` to `d` that nothing touches."""

    def __init__(self, plane: BrokeredPlane, nodes: dict[str, Node], use: Use, bystander: Use) -> None:
        self.plane, self.nodes, self.use, self.bystander = plane, nodes, use, bystander

    async def wait_cut(self, reason: Reason | None = None) -> None:
        await settled(lambda: self.use.cut is not None and self.nodes["b"].calls[0].cut is not None)
        assert reason is None or self.use.cut is reason
        assert self.bystander.cut is None


@pytest.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Joined]:
    async with BrokeredPlane(tmp_path).running() as plane:
        registry = asyncio.create_task(plane.registry.run())
        nodes = {name: await plane.node(name) for name in ("a", "b", "c", "d")}
        use, bystander = await nodes["a"].reach("b"), await nodes["c"].reach("d")
        assert use.answer is not None
        await plane.advance(0.5)  # it is no longer one of those that a change looks through one by one
        yield Joined(plane, nodes, use, bystander)
        registry.cancel()


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_revocation(joined: Joined, name: str) -> None:
    joined.plane.store.apply(Revocation(1, spiffe(name), "", "key_compromise", joined.plane.clock.now()))
    await joined.wait_cut()
    await settled(lambda: joined.nodes[name].is_lost)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_revoked_certificate(joined: Joined, name: str) -> None:
    holder = joined.plane.broker.holder(spiffe(name))
    assert holder is not None
    revocation = Revocation(1, spiffe(name), holder.peer.serial, "superseded", joined.plane.clock.now())
    joined.plane.store.apply(revocation)
    await joined.wait_cut()


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_failed_attestation(joined: Joined, name: str) -> None:
    joined.plane.store.apply(PostureChanged(2, spiffe(name), FAILED, joined.plane.clock.now() + 100))
    await joined.wait_cut(Reason.CUT_BY_CHANGE)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_quarantine(joined: Joined, name: str) -> None:
    joined.plane.store.apply(IdentityChanged(2, record(name, state=State.QUARANTINED, epoch=2)))
    await joined.wait_cut(Reason.CUT_BY_CHANGE)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_another_segment(joined: Joined, name: str) -> None:
    def reaches(query: Query) -> Answer:
        segments = {query.identity.segment, query.target.segment if query.target is not None else ""}
        return ALLOW if segments == {"edge"} else DENY

    joined.plane.engine.answer = reaches
    joined.plane.store.apply(IdentityChanged(2, replace(record(name, epoch=2), segment="lab")))
    await joined.wait_cut(Reason.CUT_BY_CHANGE)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_silence_of_the_attestation(joined: Joined, name: str) -> None:
    plane = joined.plane
    plane.store.apply(PostureChanged(1, spiffe(name), PASSED, plane.clock.now() + 30))
    plane.store.apply(IdentityChanged(2, record(name, epoch=2)))  # decided again: by the nearer deadline
    await plane.advance(29.0)
    assert joined.use.cut is None
    await plane.advance(2.0)
    await joined.wait_cut(Reason.CUT_BY_DEADLINE)


async def test_the_end_of_the_grant(joined: Joined) -> None:
    plane = joined.plane
    plane.engine.answer = lambda query: replace(ALLOW, deadline=plane.clock.now() + 30)
    plane.store.apply(IdentityChanged(2, record("a", epoch=2)))
    await plane.advance(1.0)
    plane.engine.answer = lambda query: DENY if query.identity.id.name == "a" else ALLOW
    assert joined.use.cut is None
    await plane.advance(31.0)
    await joined.wait_cut(Reason.CUT_BY_DEADLINE)


async def test_a_revision(joined: Joined) -> None:
    engine = FakeEngine(lambda query: DENY if query.identity.id.name == "a" else ALLOW, cached=True)
    joined.plane.publish(engine=engine, revision=2)
    await joined.wait_cut(Reason.CUT_BY_CHANGE)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_the_end_of_a_certificate(joined: Joined, name: str) -> None:
    plane = joined.plane
    holder = plane.broker.holder(spiffe(name))
    assert holder is not None
    for each in ("a", "b", "c", "d"):
        plane.store.apply(PostureChanged(1, spiffe(each), PASSED, holder.peer.not_after + 1_000_000))
    plane.clock.advance(holder.peer.not_after - plane.clock.now() + 1)
    await plane.advance(1.0)
    await settled(lambda: joined.use.cut is not None)

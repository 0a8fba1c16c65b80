"""Class "cached verdict outlives validity": what a node decides by while it is cut off is used beyond its bound, with a
clock that is set back, or after the authority has refused the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.bundle import Bundles
from agent.local import LocalDecisions, Question, answer_document
from foundation.decisionlog.ids import DecisionIds
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.bundle import BundleTerms
from policies.settings import PolicySettings
from policies.wasm import WasmEngine
from tests.fakes.clock import ManualClock
from tests.support.bundles import FakeAuthority, Keeping

TERMS = BundleTerms(refresh=60, stale_after=100, expired_after=1000)
Ask = Callable[[str], str]


@pytest.fixture
def node(tmp_path: Path) -> Keeping:
    clock = ManualClock()
    return Keeping(tmp_path / "node", FakeAuthority(clock, terms=TERMS), clock)


@asynccontextmanager
async def started(node: Keeping) -> AsyncIterator[tuple[Bundles, Ask]]:
    """The node, from one start to the next, and the first reason of a decision on a route."""
    bundles = node.start()
    decisions = LocalDecisions(
        {0: frozenset({"reader", "agent"})},
        lambda compiled: WasmEngine(compiled, PolicySettings(decision_timeout=5.0)),
        lambda decision: True,
        DecisionIds(bundles._time),
        bundles._time,
    )
    await bundles.load()
    bundles.listen(decisions.use)
    task = asyncio.create_task(decisions.run())

    def ask(route: str) -> str:
        document = {"route": route, "method": "GET", "path": "/models/a"}
        question = Question.parse(Fields(document, "", Reason.MESSAGE_MALFORMED), 0)
        return str(answer_document(decisions.decide(question))["reasons"][0])

    try:
        if bundles.current is None:
            await bundles.refresh()
        if bundles.current is not None:
            await decisions.ready.wait()
        yield bundles, ask
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("route", ["models", "manual"])
async def test_nothing_is_decided_beyond_the_bound_whatever_the_routes_class(node: Keeping, route: str) -> None:
    async with started(node) as (_, ask):
        assert ask(route) == "granted"
        node.clock.advance(TERMS.expired_after)
        assert ask(route) == "staleness_exceeded"


async def test_a_clock_that_is_set_back_makes_nothing_young(node: Keeping) -> None:
    async with started(node) as (_, ask):
        began = node.clock.now()
        node.clock.advance(TERMS.expired_after)
        assert ask("models") == "staleness_exceeded"
        node.clock.set_wall(began)
        assert ask("models") == "staleness_exceeded"


async def test_nor_does_a_start_with_the_floor_of_time_removed(node: Keeping) -> None:
    """The time is sealed with the bundle, again and again while the authority is away."""
    began = node.clock.now()
    async with started(node) as (bundles, ask):
        node.authority.fault = Reason.SERVER_UNREACHABLE
        node.clock.advance(TERMS.expired_after)
        await bundles.refresh()
        assert ask("models") == "staleness_exceeded"
    (node.folder / "trust-time").unlink(missing_ok=True)
    node.clock.set_wall(began)
    async with started(node) as (_, ask):
        assert ask("models") == "staleness_exceeded"


@pytest.mark.parametrize("reason", [Reason.IDENTITY_REVOKED, Reason.IDENTITY_QUARANTINED, Reason.POSTURE_FAILED])
async def test_a_node_that_was_refused_decides_nothing_after_a_start_either(node: Keeping, reason: Reason) -> None:
    async with started(node) as (bundles, ask):
        assert ask("models") == "granted"
        node.authority.fault = reason
        await bundles.refresh()
        assert ask("models") == "bundle_missing"
    node.authority.fault = Reason.SERVER_UNREACHABLE
    async with started(node) as (_, ask):
        assert ask("models") == "bundle_missing"

"""Row "L4 deny that still dials" (envoy#9023), between nodes: the target of a denied stream hears not one byte of it,
nor does the target of one whose record cannot be kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.reasons import Reason
from policies.routes import RouteClass
from tests.fakes.trust import DENY
from tests.support.brokered import STREAM_ROUTE, BrokeredPlane, Node

CRITICAL = replace(STREAM_ROUTE, route_class=RouteClass.CRITICAL)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[BrokeredPlane]:
    async with BrokeredPlane(tmp_path, (CRITICAL,)).running() as plane:
        yield plane


async def _asked_in_vain(a: Node, b: Node) -> Reason:
    heard = b.heard
    use = await a.reach("b")
    assert use.refusal is not None
    assert b.heard == heard
    assert not b.calls
    return use.refusal.reason


async def test_a_denied_stream(plane: BrokeredPlane) -> None:
    a, b = await plane.node("a"), await plane.node("b")
    plane.engine.answer = lambda query: DENY
    assert await _asked_in_vain(a, b) is Reason.NO_GRANT


async def test_a_stream_that_cannot_be_put_on_record(plane: BrokeredPlane) -> None:
    a, b = await plane.node("a"), await plane.node("b")
    plane.recorded.refuse = True
    assert await _asked_in_vain(a, b) is Reason.DECISION_UNRECORDED

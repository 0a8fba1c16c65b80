"""Row "check-then-register race", between nodes: what changes while the target is asked makes the stream be decided
again before anything is joined; there is no moment in which a stream is neither undecided nor found by a change."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foundation.identity import IdentityChanged
from foundation.reasons import Reason
from foundation.wire.streams import StreamCall
from tests.fakes.trust import ALLOW, DENY, record, spiffe
from tests.support.brokered import BrokeredPlane, Use, settled


async def test_a_change_between_the_call_and_the_answer(tmp_path: Path) -> None:
    """Nothing decides again by itself here (no `Registry.run`): joining is what has to look."""
    async with BrokeredPlane(tmp_path).running() as plane:
        a, b = await plane.node("a"), await plane.node("b")

        def change_meanwhile(call: StreamCall) -> Reason | None:
            plane.engine.answer = lambda query: DENY
            plane.store.apply(IdentityChanged(2, record("b", epoch=2)))
            return None

        b.check = change_meanwhile
        use = await a.reach("b")
        assert use.answer is None
        assert use.refusal is not None
        await settled(lambda: b.calls[0].cut is not None)


async def test_thousands_of_flips_leave_no_stream_that_is_not_permitted(tmp_path: Path) -> None:
    """Permission flips with each request, at a moment that moves; in the end it is gone, and so are all streams."""
    async with BrokeredPlane(tmp_path).running() as plane:
        a = await plane.node("a")
        await plane.node("b")
        uses: list[Use] = []
        for turn in range(2_000):
            allowed = turn % 2 == 0
            plane.engine.answer = (lambda query: ALLOW) if allowed else (lambda query: DENY)
            if turn % 3:
                plane.store.apply(IdentityChanged(turn + 2, record("a", epoch=turn + 2)))
            uses.append(a.open("b"))
            if turn % 5 == 0:
                await _answered(uses)
            if turn % 7 == 0:
                plane.store.apply(IdentityChanged(turn + 2, record("b", epoch=turn + 2)))
        await _answered(uses)
        plane.engine.answer = lambda query: DENY
        plane.store.apply(IdentityChanged(10_000, record("b", epoch=10_000)))
        async with asyncio.TaskGroup() as group:
            registry = group.create_task(plane.registry.run())
            await settled(lambda: plane.registry.open_count == 0)
            await settled(lambda: all(use.refusal is not None or use.cut is not None for use in uses))
            registry.cancel()
        assert plane.broker.holder(spiffe("b")) is not None


async def _answered(uses: list[Use]) -> None:
    await settled(lambda: all(use.answer or use.refusal or use.cut for use in uses))

"""One evaluation for all who ask the same at one time; a leader that goes hands on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from foundation.reasons import Reason
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.model import Answer, Query
from policies.settings import CacheSettings
from tests.support.engines import small
from tests.support.workspaces import query

PERMIT = Answer(True, (Reason.GRANTED,), "g", deadline=1_900_000_000)


class SlowEngine:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Answer]] = []

    async def decide(self, query: Query) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return await future

    def decide_now(self, query: Query) -> Answer | None:
        return None

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"explained": asked["route"]}

    async def close(self) -> None:
        pass


def engines() -> tuple[SlowEngine, CachedEngine]:
    slow = SlowEngine()
    return slow, CachedEngine(slow, small(), DecisionCache(CacheSettings()))


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_those_who_ask_the_same_share_one_evaluation() -> None:
    slow, cached = engines()
    tasks = [asyncio.create_task(cached.decide(query())) for _ in range(50)]
    await settle()
    assert len(slow.asked) == 1
    slow.asked[0].set_result(PERMIT)
    assert await asyncio.gather(*tasks) == [PERMIT] * 50
    assert cached.peek(query()) == PERMIT
    assert await cached.decide(query()) == PERMIT
    assert (len(slow.asked), cached.evaluated) == (1, 1)


async def test_those_who_ask_otherwise_do_not() -> None:
    slow, cached = engines()
    others = [query(), query(route="x"), query(roles=()), query(path=("x",)), query(labels={"barred": ""})]
    tasks = [asyncio.create_task(cached.decide(each)) for each in others]
    await settle()
    assert len(slow.asked) == len(others)
    for future in slow.asked:
        future.set_result(PERMIT)
    await asyncio.gather(*tasks)


async def test_a_cancelled_leader_hands_its_flight_on() -> None:
    slow, cached = engines()
    leader, *followers = [asyncio.create_task(cached.decide(query())) for _ in range(5)]
    await settle()
    leader.cancel()
    await settle()
    assert leader.cancelled()
    assert len(slow.asked) == 2  # exactly one follower leads now
    slow.asked[1].set_result(PERMIT)
    assert await asyncio.gather(*followers) == [PERMIT] * 4


async def test_a_cancelled_follower_harms_nobody() -> None:
    slow, cached = engines()
    leader, follower, other = [asyncio.create_task(cached.decide(query())) for _ in range(3)]
    await settle()
    follower.cancel()
    await settle()
    slow.asked[0].set_result(PERMIT)
    assert await asyncio.gather(leader, other) == [PERMIT] * 2
    assert follower.cancelled()


async def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.cached.MAX_WAITING", 3)
    slow, cached = engines()
    tasks = [asyncio.create_task(cached.decide(query())) for _ in range(3)]
    await settle()
    denied = await cached.decide(query())
    assert (denied.reasons, denied.input is not None) == ((Reason.ENGINE_OVERLOADED,), True)
    slow.asked[0].set_result(PERMIT)
    assert await asyncio.gather(*tasks) == [PERMIT] * 3
    assert await cached.decide(query()) == PERMIT  # there is room again, and the denial was not kept


async def test_an_engine_that_raises_wakes_all() -> None:
    slow, cached = engines()
    leader, follower = [asyncio.create_task(cached.decide(query())) for _ in range(2)]
    await settle()
    slow.asked[0].set_exception(RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        await leader
    await settle()
    slow.asked[1].set_result(PERMIT)
    assert await follower == PERMIT


async def test_an_error_is_asked_again() -> None:
    slow, cached = engines()
    for reason in (Reason.ENGINE_TIMEOUT, Reason.ENGINE_FAILED, Reason.ENGINE_UNREACHABLE):
        task = asyncio.create_task(cached.decide(query()))
        await settle()
        slow.asked[-1].set_result(Answer(False, (reason,)))
        assert (await task).reasons == (reason,)
        assert cached.peek(query()) is None
    assert len(slow.asked) == 3


async def test_a_new_epoch_is_asked_again() -> None:
    slow, cached = engines()
    task = asyncio.create_task(cached.decide(query()))
    await settle()
    slow.asked[0].set_result(PERMIT)
    await task
    risen = query()._replace(identity=replace(query().identity, epoch=2))
    assert cached.peek(query()) == PERMIT
    assert cached.peek(risen) is None


async def test_explanations_are_not_cached() -> None:
    _, cached = engines()
    assert await cached.explain({"route": "x"}) == {"explained": "x"}


async def test_an_engine_that_never_waits_is_asked_at_once_and_once() -> None:
    class Immediate(SlowEngine):
        def decide_now(self, query: Query) -> Answer | None:
            self.asked.append(asyncio.get_running_loop().create_future())
            return PERMIT

    engine = Immediate()
    cached = CachedEngine(engine, small(), DecisionCache(CacheSettings()))
    answers = [cached.decide_now(query()), cached.decide_now(query()), await cached.decide(query())]
    assert answers == [PERMIT] * 3
    assert len(engine.asked) == 1
    assert all(answer is not None and answer.input is not None for answer in answers)


async def test_an_engine_that_waits_is_not_asked_at_once() -> None:
    slow, cached = engines()
    assert cached.decide_now(query()) is None
    assert slow.asked == []

"""Slow decisions leave the event loop: broken off there, made in threads, bounded, and the loop serves on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.engine import CompiledPolicy
from policies.model import Answer, Query
from policies.pace import CALM
from policies.paced import PacedEngine
from policies.settings import CacheSettings, PolicySettings, SlowSettings
from policies.wasm import WasmEngine
from tests.support.engines import GRANTS, compiled, small
from tests.support.workspaces import query

PATIENT = PolicySettings(decision_timeout=5.0)
ALLOWED = query(route="r", path=("b", "c"), roles=("agent",))
PERMIT = '{"allow": true, "reasons": ["granted"]}'
# On route `slow` it takes as long as it may; elsewhere it permits at once.
BOMB = f"""decision := {PERMIT} if not slow
slow if {{
    input.route == "slow"
    some x in data.many
    some y in data.many
    some z in data.many
    x < y
    y < z
    z < x
}}"""


class Cpu:
    """Processor time that tests set: what the next evaluations take."""

    def __init__(self) -> None:
        self.takes, self._now = 0.0, 0.0

    def __call__(self) -> float:
        self._now += self.takes / 2
        return self._now


@pytest.fixture
def cpu() -> Cpu:
    return Cpu()


@pytest.fixture
async def make(cpu: Cpu) -> AsyncIterator[Callable[..., PacedEngine]]:
    made: list[PacedEngine] = []

    def make(
        policy: CompiledPolicy | None = None,
        settings: PolicySettings = PATIENT,
        cpu: Callable[[], float] = cpu,
        **more: Callable[[], float],
    ) -> PacedEngine:
        made.append(PacedEngine(WasmEngine(policy or small(), settings, cpu=cpu), settings, **more))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_a_quick_policy_answers_at_once(make: Callable[..., PacedEngine], cpu: Cpu) -> None:
    engine = make()
    cpu.takes = 0.001
    answer = engine.decide_now(ALLOWED)
    assert answer is not None
    assert answer.allow
    assert await engine.decide(ALLOWED) == answer
    assert (engine.slow_routes, engine._threads._engines) == ((), [])


async def test_a_slow_one_is_made_in_a_thread_until_it_is_quick_again(
    make: Callable[..., PacedEngine], cpu: Cpu
) -> None:
    engine, where = make(), []
    decide = WasmEngine.decide_now
    cpu.takes = 0.01
    for _ in range(2):
        assert engine.decide_now(ALLOWED) is not None  # what took long has its answer nonetheless
    assert (engine.decide_now(ALLOWED), engine.slow_routes) == (None, ("r",))
    cpu.takes = 0.001
    assert engine.decide_now(query(route="other")) is not None
    cpu.takes = 0.01

    def noting(self: WasmEngine, asked: Query) -> Answer:
        where.append(threading.current_thread())
        return decide(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WasmEngine, "decide_now", noting)
        assert (await engine.decide(ALLOWED)).allow
        assert where[0] is not threading.current_thread()
        cpu.takes = 0.0
        for _ in range(CALM):
            assert (await engine.decide(ALLOWED)).allow
    assert engine.slow_routes == ()
    assert engine.decide_now(ALLOWED) is not None


async def test_what_takes_long_is_broken_off_on_the_loop_and_ended_in_a_thread(
    make: Callable[..., PacedEngine],
) -> None:
    """The loop serves others meanwhile, by quick routes of the same policy."""
    many, hasty = {"many": list(range(900))}, replace(PATIENT, decision_timeout=0.5)
    engine = make(compiled(BOMB, many), hasty, cpu=time.thread_time)
    assert engine.decide_now(query(route="slow")) is None
    assert not engine._engine.is_ready  # what was broken off cost the loop its instance
    assert engine.decide_now(query(route="quick")) is None
    while not engine._engine.is_ready:  # a thread makes another
        assert (await engine.decide(query(route="quick"))).allow
    assert engine.decide_now(query(route="slow")) is None
    assert engine.slow_routes == ("slow",)
    bomb = asyncio.create_task(engine.decide(query(route="slow")))
    served = 0
    while not bomb.done():
        assert (await engine.decide(query(route="quick"))).allow
        await asyncio.sleep(0)
        served += 1
    assert (await bomb).reasons == (Reason.ENGINE_TIMEOUT,)
    assert served > 10


async def test_a_machine_without_time_for_us_makes_no_route_slow(
    make: Callable[..., PacedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is broken off after little of our own time is asked again, in a thread if need be."""
    engine = make()
    monkeypatch.setattr(WasmEngine, "decide_briefly", lambda self, asked: Answer(False, (Reason.ENGINE_TIMEOUT,)))
    assert engine.decide_now(ALLOWED) is None
    assert (await engine.decide(ALLOWED)).allow
    assert engine.slow_routes == ()


class Gate:
    """Holds evaluations in threads until it opens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        patch.setattr(WasmEngine, "decide_now", self._decide_now)

    def _decide_now(self, asked: Query) -> Answer:
        self.entered.release()
        assert self.opened.wait(30)
        return Answer(False, (Reason.NO_GRANT,))


async def test_threads_and_queue_are_bounded(
    make: Callable[..., PacedEngine], cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(settings=replace(PATIENT, slow=SlowSettings(threads=2, waiting=3)))
    gate, cpu.takes = Gate(monkeypatch), 0.01
    engine.decide_now(ALLOWED)
    engine.decide_now(ALLOWED)
    asked = [asyncio.create_task(engine.decide(ALLOWED)) for _ in range(9)]
    while not any(each.done() for each in asked):
        await asyncio.sleep(0)
    gate.opened.set()
    reasons = [answer.reasons[0] for answer in await asyncio.gather(*asked)]
    assert reasons.count(Reason.ENGINE_OVERLOADED) == 4
    assert reasons.count(Reason.NO_GRANT) == 5
    assert len(engine._threads._engines) == 2


async def test_what_waited_longer_than_a_decision_may_take_is_denied(
    make: Callable[..., PacedEngine], cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    engine = make(settings=replace(PATIENT, slow=SlowSettings(threads=1)), monotonic=lambda: now[0])
    gate, cpu.takes = Gate(monkeypatch), 0.01
    engine.decide_now(ALLOWED)
    engine.decide_now(ALLOWED)
    first, second = (asyncio.create_task(engine.decide(ALLOWED)) for _ in range(2))
    await asyncio.to_thread(gate.entered.acquire)
    now[0] = PATIENT.decision_timeout + 1
    gate.opened.set()
    assert (await first).reasons == (Reason.NO_GRANT,)
    assert (await second).reasons == (Reason.ENGINE_TIMEOUT,)


async def test_who_goes_leaves_the_queue(
    make: Callable[..., PacedEngine], cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(settings=replace(PATIENT, slow=SlowSettings(threads=1, waiting=1)))
    gate, cpu.takes = Gate(monkeypatch), 0.01
    engine.decide_now(ALLOWED)
    engine.decide_now(ALLOWED)
    running, waiting = (asyncio.create_task(engine.decide(ALLOWED)) for _ in range(2))
    await asyncio.to_thread(gate.entered.acquire)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    other = asyncio.create_task(engine.decide(ALLOWED))
    await asyncio.sleep(0)
    gate.opened.set()
    assert [(await each).reasons for each in (running, other)] == [(Reason.NO_GRANT,)] * 2


async def test_closing_lets_what_runs_end_and_denies_what_waits(
    make: Callable[..., PacedEngine], cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(settings=replace(PATIENT, slow=SlowSettings(threads=1)))
    gate, cpu.takes = Gate(monkeypatch), 0.01
    engine.decide_now(ALLOWED)
    engine.decide_now(ALLOWED)
    first, second = (asyncio.create_task(engine.decide(ALLOWED)) for _ in range(2))
    await asyncio.to_thread(gate.entered.acquire)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    gate.opened.set()
    await closing
    assert [(await each).reasons[0] for each in (first, second)] == [Reason.NO_GRANT, Reason.ENGINE_FAILED]
    assert (await engine.decide(ALLOWED)).reasons == (Reason.ENGINE_FAILED,)
    with pytest.raises(Fault):
        await engine.explain(ALLOWED.to_input())


async def test_an_explanation_is_made_in_a_thread(make: Callable[..., PacedEngine]) -> None:
    engine = make()
    assert await engine.explain(ALLOWED.to_input()) == {"roles": ["agent"], "text": "r at 1800000000"}
    assert len(engine._threads._engines) == 1


async def test_an_error_that_is_none_of_time_is_the_answer(make: Callable[..., PacedEngine]) -> None:
    engine = make(compiled("decision := true"))
    for answer in (engine.decide_now(ALLOWED), await engine.decide(ALLOWED)):
        assert answer == Answer(False, (Reason.ENGINE_ANSWER_INVALID,))


async def test_the_cache_keeps_what_was_evaluated_at_once(make: Callable[..., PacedEngine]) -> None:
    engine = make()
    cached = CachedEngine(engine, small(), DecisionCache(CacheSettings()))
    assert cached.peek(ALLOWED) is None
    first = cached.decide_now(ALLOWED)
    assert first is not None
    assert first.input is not None
    assert cached.peek(ALLOWED) is first
    assert GRANTS["workspace"]["grants"]["r"]["agent"][0]["id"] == first.grant

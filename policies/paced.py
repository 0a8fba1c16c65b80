"""The embedded engine for an event loop: what is quick is answered at once, what is not in threads of its own.

Laws held here:
- no evaluation keeps the loop waiting for more than some milliseconds: one that takes longer is broken off there, and
  done again in a thread;
- a route whose evaluations were measured above the budget is evaluated in a thread until enough of them were below it
  (`policies.pace`); so is everything while the loop's engine is made ready again;
- threads, and what waits for them, are bounded: what is beyond is a denial, `ENGINE_OVERLOADED`, and what waits longer
  than a decision may take is one too, `ENGINE_TIMEOUT`.

Wasm runs without the interpreter's lock, so the loop goes on while a thread evaluates. Each thread has an engine of its
own, made when the thread is first needed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.model import Answer, Query
from policies.pace import Pace
from policies.settings import PolicySettings
from policies.wasm import WasmEngine

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class PacedEngine:
    """Implements `policies.engine.PolicyEngine` over `engine`, which belongs to the loop's thread. `monotonic` gives a
    time that only grows, in seconds."""

    def __init__(
        self, engine: WasmEngine, settings: PolicySettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._pace = Pace(settings.slow.budget)
        self._threads = _Threads(engine, settings, monotonic)

    @property
    def slow_routes(self) -> tuple[str, ...]:
        """The routes whose decisions are made in threads now."""
        return self._pace.slow_routes

    def decide_now(self, query: Query) -> Answer | None:
        """The answer, evaluated at once where that is quick. None for what has to wait."""
        if self._pace.is_slow(query.route):
            return None
        if not self._engine.is_ready:
            self._threads.restore(self._engine)
            return None
        answer = self._evaluate(query)
        return None if answer.reasons[0] is Reason.ENGINE_TIMEOUT else answer

    async def decide(self, query: Query) -> Answer:
        quick = self.decide_now(query)
        if quick is not None:
            return quick
        try:
            answer, took = await self._threads.run(lambda engine: (engine.decide_now(query), engine.took))
        except Fault as fault:
            return Answer(False, (fault.reason,))
        self._note(query.route, took)
        return answer

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._threads.run(lambda engine: engine.explain_now(asked))

    async def close(self) -> None:
        await self._threads.close()
        await self._engine.close()

    def _evaluate(self, query: Query) -> Answer:
        """Here and now; `ENGINE_TIMEOUT` when it is broken off. On a machine that had no processor for us that says
        nothing of the policy: what counts is the time it took of ours."""
        answer = self._engine.decide_briefly(query)
        self._note(query.route, self._engine.took)
        return answer

    def _note(self, route: str, seconds: float) -> None:
        if self._pace.note(route, seconds):
            _LOG.warning("decisions on route %s take too long for the event loop: they are made in threads", route)


class _Threads:
    """Some threads, each with an engine of its own, and a bounded queue before them."""

    def __init__(self, first: WasmEngine, settings: PolicySettings, monotonic: Callable[[], float]) -> None:
        self._first = first
        self._most = settings.slow.threads + settings.slow.waiting
        self._timeout = settings.decision_timeout
        self._monotonic = monotonic
        self._own = threading.local()
        self._engines: list[WasmEngine] = []
        self._pool = ThreadPoolExecutor(settings.slow.threads, thread_name_prefix="policy")
        self._restoring: Future[None] | None = None
        self._under_way = 0
        self._closed = False

    async def run(self, ask: Callable[[WasmEngine], T]) -> T:
        """What `ask` gives in one of the threads. Raises `Fault`: `ENGINE_OVERLOADED`, `ENGINE_TIMEOUT`,
        `ENGINE_FAILED`, or what `ask` raises."""
        if self._closed:
            raise Fault(Reason.ENGINE_FAILED, "the engine is closed")
        if self._under_way >= self._most:
            raise Fault(Reason.ENGINE_OVERLOADED)
        until = self._monotonic() + self._timeout
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, ask, until)
        finally:
            self._under_way -= 1

    def restore(self, engine: WasmEngine) -> None:
        """Make `engine` ready, unless that is under way."""
        if not self._closed and (self._restoring is None or self._restoring.done()):
            self._restoring = self._pool.submit(engine.restore)

    async def close(self) -> None:
        """What waits is told that the engine is closed; what runs may end."""
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        for engine in self._engines:
            engine.stop()

    def _ask(self, ask: Callable[[WasmEngine], T], until: float) -> T:
        if self._closed:
            raise Fault(Reason.ENGINE_FAILED, "the engine is closed")
        if self._monotonic() > until:
            raise Fault(Reason.ENGINE_TIMEOUT, "it waited for too long")
        return ask(self._engine_here())

    def _engine_here(self) -> WasmEngine:
        engine: WasmEngine | None = getattr(self._own, "engine", None)
        if engine is None:
            engine = self._own.engine = self._first.another()
            self._engines.append(engine)
        return engine

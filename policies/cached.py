"""An engine that remembers: one evaluation for all who ask the same at one time, and none for who asks it again.

Laws held here:
- who waits for an evaluation waits for its end, not for its leader: a leader that is cancelled hands its flight on;
- those who wait are bounded: who comes beyond is denied, `ENGINE_OVERLOADED`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from foundation.decisionlog.masking import Mask
from foundation.reasons import Reason
from policies.cache import DecisionCache
from policies.engine import DECISION_ENTRYPOINT, CompiledPolicy, PolicyEngine
from policies.frozen import Freezer
from policies.model import Answer, FrozenInput, Query
from policies.projector import Projector

MAX_WAITING = 4096  # decisions under way beyond the cache; more are denied


class CachedEngine:
    """Implements `policies.engine.PolicyEngine` over `engine`, which must have `compiled` loaded. `evaluated` counts
    the decisions that it had to be asked for."""

    def __init__(
        self, engine: PolicyEngine, compiled: CompiledPolicy, cache: DecisionCache, mask: Mask | None = None
    ) -> None:
        """`mask` is for what the record keeps of a question."""
        self._engine = engine
        self._cache = cache
        self._key = Projector(compiled.digest, DECISION_ENTRYPOINT, compiled.reads).key
        self._freeze = Freezer(compiled.reads, mask or Mask.forgetful())
        self._waiting = 0
        self._flights: dict[bytes, asyncio.Future[Answer | None]] = {}
        self.evaluated = 0

    def peek(self, query: Query) -> Answer | None:
        """The answer that was given before and still holds; None when there is none."""
        key = self._key(query)
        return None if key is None else self._cache.get(key, query.now)

    def decide_now(self, query: Query) -> Answer | None:
        key = self._key(query)
        answer = None if key is None else self._cache.get(key, query.now)
        if answer is not None:
            return answer
        answer = self._engine.decide_now(query)
        return None if answer is None else self._keep(key, query, answer)

    async def decide(self, query: Query) -> Answer:
        key = self._key(query)
        if self._waiting >= MAX_WAITING:
            return self._with_input(key, query, Answer(False, (Reason.ENGINE_OVERLOADED,)))
        self._waiting += 1
        try:
            if key is None:
                return self._keep(None, query, await self._engine.decide(query))
            return await self._fly(key, query)
        finally:
            self._waiting -= 1

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._engine.explain(asked)

    async def close(self) -> None:
        self._cache.clear()
        await self._engine.close()

    async def _fly(self, key: bytes, query: Query) -> Answer:
        """Along with who asks the same already, or at their head."""
        while True:
            answer = self._cache.get(key, query.now)
            if answer is not None:
                return answer
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, query)
            answer = await asyncio.shield(flight)
            if answer is not None:
                return answer

    async def _lead(self, key: bytes, query: Query) -> Answer:
        """Ask the engine for all that wait under `key`. A leader that is cancelled wakes them with None: one of them
        leads next."""
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        answer = None
        try:
            answer = self._keep(key, query, await self._engine.decide(query))
        finally:
            del self._flights[key]
            flight.set_result(answer)
        return answer

    def _keep(self, key: bytes | None, query: Query, answer: Answer) -> Answer:
        self.evaluated += 1
        kept = self._with_input(key, query, answer)
        if key is not None:
            self._cache.put(key, kept)
        return kept

    def _with_input(self, key: bytes | None, query: Query, answer: Answer) -> Answer:
        """`answer` with what the record keeps of the question, encoded once for all who ask it."""
        asked = FrozenInput(key or b"", self._freeze(query))
        return Answer(answer.allow, answer.reasons, answer.grant, answer.deadline, answer.obligations, asked)

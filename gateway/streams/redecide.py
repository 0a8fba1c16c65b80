"""Asks again for the exchanges that a change or a deadline touched, in slices of time between which others are served.

An exchange waits here once, however many causes touch it. Engines that answer at once are asked one exchange after
another; of those that wait (a policy server), `ASKED_AT_ONCE` are asked at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from foundation.clock import Clock
from foundation.reasons import Reason
from policies.model import Decision

if TYPE_CHECKING:
    from gateway.streams.registry import Exchange

SLICE_SECONDS = 0.004
ASKED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Cause:
    """Why exchanges are decided again. `since` is when trust changed, in seconds since the Unix epoch; `concerns` tells
    which of the exchanges' answers may be others than before, None: all."""

    reason: Reason
    since: float
    concerns: Callable[[Exchange], bool] | None = None


class Redecider(Protocol):
    """Decides once more on what runs already (`gateway.proxy.decide.Decider`)."""

    def again_now(self, exchange: Exchange) -> Decision | None:
        """The decision when it needs no waiting."""
        ...

    async def again(self, exchange: Exchange) -> Decision: ...


class Redecisions:
    """The queue and the one loop that works it off. `decided` is told what became of an exchange that is still open."""

    def __init__(
        self, clock: Clock, redecider: Redecider, decided: Callable[[Exchange, Decision, Cause], None]
    ) -> None:
        self._clock = clock
        self._redecider = redecider
        self._decided = decided
        self._pending: dict[Exchange, Cause] = {}
        self._wake = asyncio.Event()
        self._slice_end = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, exchange: Exchange, cause: Cause) -> None:
        """Decide `exchange` again. Two causes that each concern some alone are one that concerns all."""
        waiting = self._pending.get(exchange)
        if waiting is None:
            self._pending[exchange] = cause
        elif waiting.concerns is not None:
            self._pending[exchange] = Cause(cause.reason, cause.since)
        self._wake.set()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def wait(self) -> None:
        """Until there is something to do."""
        await self._wake.wait()
        self._wake.clear()

    def slice_end(self) -> float:
        """When the slice that begins now has to be over (monotonic seconds)."""
        return self._clock.monotonic() + SLICE_SECONDS

    async def run(self) -> None:
        """Work off what waits."""
        end = self.slice_end()
        while self._pending:
            exchange = next(iter(self._pending))
            cause = self._pending.pop(exchange)
            if not self._settle_now(exchange, cause):
                await self._ask(exchange, cause)
                end = self.slice_end()
            elif self._clock.monotonic() >= end:
                await asyncio.sleep(0)
                end = self.slice_end()

    def _settle_now(self, exchange: Exchange, cause: Cause) -> bool:
        """Whether nothing is left to ask for `exchange`."""
        if not exchange.open or exchange.permit is None:
            return True
        if cause.concerns is not None and not cause.concerns(exchange):
            return True
        decision = self._redecider.again_now(exchange)
        if decision is None:
            return False
        self._decided(exchange, decision, cause)
        return True

    async def _ask(self, first: Exchange, cause: Cause) -> None:
        """Ask the engine for `first`, and at the same time for others that wait."""
        end = self.slice_end()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask_one(first, cause))
            for _ in range(min(ASKED_AT_ONCE, len(self._pending))):
                group.create_task(self._ask_others(end))

    async def _ask_others(self, end: float) -> None:
        while self._pending and self._clock.monotonic() < end:
            exchange = next(iter(self._pending))
            other = self._pending.pop(exchange)
            if not self._settle_now(exchange, other):
                await self._ask_one(exchange, other)

    async def _ask_one(self, exchange: Exchange, cause: Cause) -> None:
        decision = await self._redecider.again(exchange)
        if exchange.open:
            self._decided(exchange, decision, cause)

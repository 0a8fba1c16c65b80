"""Every exchange that is under way, and every connection, so that a change of trust finds what it touches.

Laws held here:
- an exchange registers before its decision and leaves with its last byte, whatever it looks like (a watch may be a
  POST);
- a change marks each exchange that it touches (`generation`); a decision made before the mark does not stand;
- a revocation cuts at once, within the call that publishes it; any other change re-decides, and cuts what is denied;
- cost follows the exchanges that a change touches, not those that are open.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from foundation.clock import Clock
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from gateway.snapshot import Snapshot, Touched
from policies.model import FOREVER, Decision, Permit

T = TypeVar("T")
TICK_SECONDS = 0.05
_REDECIDED_PER_TURN = 64


class Exchange:
    """One request and its answer, or one stream, from before its decision to its last byte.

    cut: called at most once, with the reason; it aborts the client's connection and whatever is under way upstream.
    deadline: when its permission ends, in seconds since the Unix epoch; infinite until it is permitted.
    """

    __slots__ = ("_cut", "deadline", "generation", "identity", "open", "permit", "redecide", "serial")

    def __init__(self, identity: SpiffeId, serial: str, cut: Callable[[Reason], None]) -> None:
        self.identity = identity
        self.serial = serial
        self.generation = 0
        self.deadline = FOREVER
        self.permit: Permit | None = None
        self.redecide: Callable[[], Awaitable[Decision]] | None = None
        self.open = True
        self._cut = cut

    def permitted(self, permit: Permit, redecide: Callable[[], Awaitable[Decision]]) -> None:
        """From now on it runs by `permit`; `redecide` asks the same question again."""
        self.permit = permit
        self.deadline = permit.deadline
        self.redecide = redecide

    def cut(self, reason: Reason) -> None:
        """End it now."""
        if self.open:
            self.open = False
            self._cut(reason)

    def forget(self) -> None:
        """It is over: let go of what would cut it or ask for it again. Both lead back here, and such rings are left to
        the garbage collector, which stops everything while it looks for them."""
        self.open = False
        self._cut, self.redecide = _nothing, None


def _nothing(reason: Reason) -> None:
    pass


class Connection(Protocol):
    """A client's connection, idle or not."""

    @property
    def identity(self) -> SpiffeId: ...

    @property
    def serial(self) -> str: ...

    def abort(self, reason: Reason) -> None:
        """Close it now, without a TLS goodbye."""
        ...


class Registry:
    """Finds exchanges and connections by identity and by serial. One event loop owns it."""

    def __init__(self, clock: Clock, record: Callable[[Decision], None]) -> None:
        self._clock = clock
        self._record = record
        self._exchanges: dict[SpiffeId | str, dict[Exchange, None]] = {}
        self._connections: dict[SpiffeId | str, dict[Connection, None]] = {}
        self._young: dict[Exchange, None] = {}
        self._due: list[tuple[float, int, Exchange]] = []
        self._sequence = 0
        self._pending: dict[Exchange, Reason] = {}
        self._wake = asyncio.Event()
        self.open_count = 0
        self.cut_count = 0

    # --- what the proxy calls -------------------------------------------------------------------

    def register(self, exchange: Exchange) -> None:
        """Before its decision."""
        _add(self._exchanges, exchange, exchange.identity, exchange.serial)
        self._young[exchange] = None
        self.open_count += 1

    def leave(self, exchange: Exchange) -> None:
        """With its last byte, however it ended. Leaving twice is leaving once."""
        if _remove(self._exchanges, exchange, exchange.identity, exchange.serial):
            exchange.forget()
            self._young.pop(exchange, None)
            self._pending.pop(exchange, None)
            self.open_count -= 1

    def connected(self, connection: Connection) -> None:
        """After the handshake, when the identity is known."""
        _add(self._connections, connection, connection.identity, connection.serial)

    def disconnected(self, connection: Connection) -> None:
        _remove(self._connections, connection, connection.identity, connection.serial)

    def connections_of(self, identity: SpiffeId) -> int:
        return len(self._connections.get(identity, ()))

    # --- what a new snapshot does ---------------------------------------------------------------

    def changed(self, snapshot: Snapshot, touched: Touched) -> None:
        """A `gateway.snapshot.Listener`. Revoked ones are cut before this returns; the others are queued to be decided
        again."""
        if touched.everything:
            self._mark(list(self._all_exchanges()))
            return
        keys: list[SpiffeId | str] = [*touched.identities, *touched.serials]
        for key in keys:
            if _is_revoked(snapshot, key):
                self._sever(key)
            else:
                self._mark(self._exchanges.get(key, ()))

    def _sever(self, key: SpiffeId | str) -> None:
        for exchange in list(self._exchanges.get(key, ())):
            exchange.generation += 1
            self._cut(exchange, Reason.CUT_BY_REVOCATION)
        for connection in list(self._connections.get(key, ())):
            connection.abort(Reason.CUT_BY_REVOCATION)

    def _mark(self, exchanges: Iterable[Exchange]) -> None:
        for exchange in exchanges:
            exchange.generation += 1
            if exchange.permit is not None:
                self._pending[exchange] = Reason.CUT_BY_CHANGE
        self._wake.set()

    # --- the one task that re-decides -------------------------------------------------------------

    async def run(self) -> None:
        """Re-decide what changes marked and what reached its deadline, until cancelled. The orchestrator owns this."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick())
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._redecide_pending()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_SECONDS)
            self.expire()

    def expire(self) -> None:
        """Queue what has reached its deadline. Exchanges that outlived a tick move to a heap; most never do."""
        now = self._clock.now()
        for exchange in [each for each in self._young if each.permit is not None]:
            del self._young[exchange]
            self._schedule(exchange)
        while self._due and self._due[0][0] <= now:
            exchange = heapq.heappop(self._due)[2]
            if exchange.open:
                exchange.generation += 1
                self._pending[exchange] = Reason.CUT_BY_DEADLINE
                self._wake.set()

    def _schedule(self, exchange: Exchange) -> None:
        if exchange.deadline == FOREVER:
            return
        self._sequence += 1
        heapq.heappush(self._due, (exchange.deadline, self._sequence, exchange))
        if len(self._due) > 2 * self.open_count + 1024:
            self._due = [entry for entry in self._due if entry[2].open]
            heapq.heapify(self._due)

    async def _redecide_pending(self) -> None:
        done = 0
        while self._pending:
            exchange = next(iter(self._pending))
            await self._redecide(exchange, self._pending.pop(exchange))
            done += 1
            if done % _REDECIDED_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _redecide(self, exchange: Exchange, reason: Reason) -> None:
        if not exchange.open or exchange.redecide is None:
            return
        decision = await exchange.redecide()
        if isinstance(decision, Permit):
            exchange.permit = decision
            if decision.deadline != exchange.deadline:
                exchange.deadline = decision.deadline
                self._schedule(exchange)
            return
        self._cut(exchange, reason)
        self._record(decision)

    def _cut(self, exchange: Exchange, reason: Reason) -> None:
        self.cut_count += 1
        exchange.cut(reason)
        self.leave(exchange)

    def _all_exchanges(self) -> Iterable[Exchange]:
        for key, exchanges in self._exchanges.items():
            if isinstance(key, SpiffeId):
                yield from exchanges


def _is_revoked(snapshot: Snapshot, key: SpiffeId | str) -> bool:
    return key in snapshot.revoked_serials if isinstance(key, str) else key in snapshot.revoked_identities


def _add(index: dict[SpiffeId | str, dict[T, None]], item: T, *keys: SpiffeId | str) -> None:
    for key in keys:
        index.setdefault(key, {})[item] = None


def _remove(index: dict[SpiffeId | str, dict[T, None]], item: T, *keys: SpiffeId | str) -> bool:
    found = False
    for key in keys:
        members = index.get(key)
        if members is not None and item in members:
            found = True
            del members[item]
            if not members:
                del index[key]
    return found

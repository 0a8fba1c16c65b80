"""Every exchange that is under way, and every connection, so that a change of trust finds what it touches.

Laws held here:
- an exchange registers before its decision and leaves with its last byte, whatever it looks like (a watch may be a
  POST);
- a change marks each exchange that it touches (`generation`) before it returns; a decision made before the mark does
  not stand;
- a withdrawal (of an identity, a certificate, an issuer) cuts at once, within the call that publishes it, for
  `SEVER_SECONDS` at most; what is left is cut in the turns of the event loop that follow, before anything else is done
  here. Any other change re-decides (`gateway.streams.redecide`), and cuts what is denied;
- cost follows the exchanges that a change touches, not those that are open.

What ends within a tick is in no index: a change looks through all that are so young. What lives longer is found by
identity, certificate, issuer, route and upstream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, Protocol

from foundation.clock import Clock
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from gateway.difference import RevisionDifference
from gateway.proxy.identify import Peer
from gateway.snapshot import Snapshot, Touched
from gateway.streams.deadlines import Deadlines
from gateway.streams.index import Index
from gateway.streams.quiet import Quiet
from gateway.streams.redecide import Cause, Redecider, Redecisions
from gateway.streams.renewals import Renewals
from policies.model import FOREVER, Decision, Denial, Permit
from policies.routes import Route

TICK_SECONDS = 0.05
SEVER_SECONDS = 0.1
SEVER_SLICE = 0.02
QUIET_FROM = 64


class Cut(NamedTuple):
    """The exchange that began by the permit of this ID was cut: `because` of this denial."""

    permit: str
    reason: Reason
    because: Denial


class Exchange:
    """One request and its answer, or one stream, from before its decision to its last byte.

    cut: called at most once, with the reason; it aborts the client's connection and whatever is under way upstream.
    deadline: when its permission ends, in seconds since the Unix epoch; infinite until it is permitted.
    began_by: the ID of its first permit, which the client was told.
    upstream: what its bytes come from, once that is known (`Registry.dialled`).
    target: of a brokered stream, the node that it leads to, as it is proven where its tunnel ends: what touches either
    of both touches the stream.
    """

    __slots__ = (
        "_cut",
        "began_by",
        "deadline",
        "generation",
        "indexed",
        "open",
        "peer",
        "permit",
        "route",
        "target",
        "upstream",
    )

    def __init__(self, peer: Peer, cut: Callable[[Reason], None], target: Peer | None = None) -> None:
        self.peer = peer
        self.target = target
        self.generation = 0
        self.deadline = FOREVER
        self.permit: Permit | None = None
        self.began_by = ""
        self.route: Route | None = None
        self.upstream: Hashable = None
        self.indexed = False
        self.open = True
        self._cut = cut

    @property
    def parties(self) -> tuple[Peer, ...]:
        """Those whose trust it stands on."""
        return (self.peer,) if self.target is None else (self.peer, self.target)

    def permitted(self, permit: Permit, route: Route) -> None:
        """From now on it runs by `permit`, over `route`."""
        self.permit = permit
        self.began_by = permit.id
        self.route = route
        self.deadline = permit.deadline

    def cut(self, reason: Reason) -> None:
        """End it now."""
        if self.open:
            self.open = False
            self._cut(reason)

    def forget(self) -> None:
        """It is over: let go of what would cut it. That leads back here, and such rings are left to the garbage
        collector, which stops everything while it looks for them."""
        self.open = False
        self._cut = _nothing


def _nothing(reason: Reason) -> None:
    pass


class Connection(Protocol):
    """A client's connection, idle or not."""

    @property
    def peer(self) -> Peer: ...

    @property
    def under_way(self) -> int:
        """Its exchanges that are not over."""
        ...

    def abort(self, reason: Reason) -> None:
        """Close it now, without a TLS goodbye."""
        ...


CutListener = Callable[[Reason, float], None]
"""Told of each cut: its reason, and the seconds from when trust ended (the authority's commit, or the deadline)."""


class Registry:
    """Finds exchanges and connections. One event loop owns it."""

    def __init__(
        self,
        clock: Clock,
        record: Callable[[Cut], None],
        redecider: Redecider,
        on_cut: CutListener | None = None,
        renewals: Renewals | None = None,
    ) -> None:
        self._clock = clock
        self._record = record
        self._redecider = redecider
        self._on_cut = on_cut
        self._renewals = Renewals() if renewals is None else renewals
        self._young: dict[Exchange, None] = {}
        self._by_identity: Index[SpiffeId, Exchange] = Index()
        self._by_serial: Index[str, Exchange] = Index()
        self._by_issuer: Index[str, Exchange] = Index()
        self._by_route: Index[str, Exchange] = Index()
        self._by_upstream: Index[Hashable, Exchange] = Index()
        self._connections: Index[SpiffeId | str, Connection] = Index()
        self._deadlines = Deadlines()
        self._redecisions = Redecisions(clock, redecider, self._decided)
        self._doomed: deque[tuple[Exchange | Connection, Cause]] = deque()
        self._quiet = Quiet()
        self._withdrawn: deque[tuple[Exchange, Reason]] = deque()
        self._settled_count = 0
        self.cut_count = 0

    @property
    def open_count(self) -> int:
        """Exchanges under way."""
        return len(self._young) + self._settled_count

    @property
    def is_severing(self) -> bool:
        """Whether something that lost its trust is not cut yet."""
        return bool(self._doomed)

    def open_by_route(self) -> dict[str, int]:
        """Those that outlived a tick."""
        return dict(self._by_route.sizes())

    # --- what the proxy calls -------------------------------------------------------------------

    def register(self, exchange: Exchange) -> None:
        """Before its decision."""
        self._young[exchange] = None

    def dialled(self, exchange: Exchange, upstream: Hashable) -> None:
        """`exchange` gets its answer from `upstream` now."""
        if exchange.indexed:
            self._by_upstream.remove(exchange.upstream, exchange)
            self._by_upstream.add(upstream, exchange)
        exchange.upstream = upstream

    def leave(self, exchange: Exchange) -> None:
        """With its last byte, however it ended. Leaving twice is leaving once."""
        if exchange.indexed:
            self._unindex(exchange)
        else:
            self._young.pop(exchange, None)
        exchange.forget()

    def connected(self, connection: Connection) -> None:
        """After the handshake, when the identity is known."""
        self._renewals.opened(connection.peer.serial)
        for key in _keys(connection.peer):
            self._connections.add(key, connection)

    def disconnected(self, connection: Connection) -> None:
        self._renewals.closed(connection.peer.serial)
        for key in _keys(connection.peer):
            self._connections.remove(key, connection)

    def connections_of(self, identity: SpiffeId) -> int:
        return len(self._connections.of(identity))

    def exchanges_of(self, identity: SpiffeId) -> int:
        """Exchanges under way on all connections of this identity."""
        return sum([connection.under_way for connection in self._connections.of(identity)])

    # --- what a new snapshot does ---------------------------------------------------------------

    def changed(self, snapshot: Snapshot, touched: Touched) -> None:
        """A `gateway.snapshot.Listener`. What lost its trust is cut before this returns; what else is touched is queued
        to be decided again."""
        if touched.policy is not None:
            self._quiet.keep()
            self._revised(touched.policy, touched.at or self._clock.now())
            return
        at = touched.at or self._clock.now()
        revoked, changed = Cause(Reason.CUT_BY_REVOCATION, at), Cause(Reason.CUT_BY_CHANGE, at)
        for identity in touched.identities:
            if identity in snapshot.revoked_identities:
                self._doom(identity, self._of_identity(identity), revoked)
            else:
                self._mark(self._of_identity(identity), changed)
        for serial in touched.serials:
            self._doom(serial, self._of_serial(serial), revoked)
        for issuer in touched.issuers:
            self._doom(issuer, self._of_issuer(issuer), revoked)
        if len(self._doomed) + len(self._redecisions) >= QUIET_FROM:
            self._quiet.keep()
        self._sever(self._clock.monotonic() + SEVER_SECONDS)

    def _of_identity(self, identity: SpiffeId) -> list[Exchange]:
        young = [
            each
            for each in self._young
            if each.peer.id == identity or (each.target is not None and each.target.id == identity)
        ]
        return [*self._by_identity.of(identity), *young]

    def _of_serial(self, serial: str) -> list[Exchange]:
        young = [
            each
            for each in self._young
            if each.peer.serial == serial or (each.target is not None and each.target.serial == serial)
        ]
        return [*self._by_serial.of(serial), *young]

    def _of_issuer(self, issuer: str) -> list[Exchange]:
        young = [
            each
            for each in self._young
            if each.peer.issuer == issuer or (each.target is not None and each.target.issuer == issuer)
        ]
        return [*self._by_issuer.of(issuer), *young]

    def _revised(self, difference: RevisionDifference, at: float) -> None:
        """A revision decides from now on. Every decision under way is made again; of those that stand, the ones that
        `difference` may concern."""
        self._mark(list(self._young), Cause(Reason.CUT_BY_CHANGE, at))
        self._mark(self._concerned(difference), Cause(Reason.CUT_BY_CHANGE, at, difference.concerns))

    def _concerned(self, difference: RevisionDifference) -> Iterable[Exchange]:
        if difference.routes is None:
            return [each for route, _ in list(self._by_route.sizes()) for each in self._by_route.of(route)]
        found = {each: None for route in difference.routes for each in self._by_route.of(route)}
        found.update((each, None) for upstream in difference.upstreams for each in self._by_upstream.of(upstream))
        return found

    def _mark(self, exchanges: Iterable[Exchange], cause: Cause) -> None:
        for exchange in exchanges:
            exchange.generation += 1
            if exchange.permit is not None:
                self._redecisions.add(exchange, cause)

    def _doom(self, key: SpiffeId | str, exchanges: Iterable[Exchange], cause: Cause) -> None:
        for exchange in exchanges:
            exchange.generation += 1
            self._doomed.append((exchange, cause))
        self._doomed.extend((connection, cause) for connection in self._connections.of(key))

    def _sever(self, until: float) -> None:
        """Cut what is doomed, until this moment (monotonic seconds). What to record of it waits until all is cut."""
        while self._doomed:
            doomed, cause = self._doomed.popleft()
            if isinstance(doomed, Exchange):
                if doomed.open:
                    self._cut(doomed, cause)
                    self._withdrawn.append((doomed, cause.reason))
            else:
                doomed.abort(cause.reason)
            if self._clock.monotonic() >= until:
                break
        if self._doomed or self._withdrawn:
            self._redecisions.wake()

    def _record_withdrawn(self, until: float) -> None:
        """What had been permitted is on record as denied from now on."""
        while self._withdrawn and self._clock.monotonic() < until:
            exchange, reason = self._withdrawn.popleft()
            decision = self._redecider.again_now(exchange) if exchange.permit is not None else None
            if isinstance(decision, Denial):
                self._record(Cut(exchange.began_by, reason, decision))

    # --- what time does -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Cut and re-decide what changes marked and what reached its deadline, until cancelled. The orchestrator owns
        this."""
        self._quiet.begin()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tick())
                while True:
                    await self._redecisions.wait()
                    await self._finish_severing()
                    await self._redecisions.run()
        finally:
            self._record_withdrawn(FOREVER)
            self._quiet.end()

    async def _finish_severing(self) -> None:
        """Cut what one call was too short for, then put on record what was cut, in slices."""
        while self._doomed:
            self._sever(self._clock.monotonic() + SEVER_SLICE)
            await asyncio.sleep(0)
        while self._withdrawn:
            self._record_withdrawn(self._redecisions.slice_end())
            await asyncio.sleep(0)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_SECONDS)
            self.expire()

    def expire(self) -> None:
        """Index what has outlived a tick (most never do), and queue what has reached its deadline."""
        if self._young:
            for exchange in [each for each in self._young if each.permit is not None]:
                del self._young[exchange]
                self._index(exchange)
                self._deadlines.schedule(exchange)
        for exchange in self._deadlines.reached(self._clock.now()):
            exchange.generation += 1
            self._redecisions.add(exchange, Cause(Reason.CUT_BY_DEADLINE, exchange.deadline))

    def _decided(self, exchange: Exchange, decision: Decision, cause: Cause) -> None:
        """`exchange` was decided again."""
        if isinstance(decision, Permit):
            moved = decision.deadline != exchange.deadline or cause.reason is Reason.CUT_BY_DEADLINE
            exchange.permit, exchange.deadline = decision, decision.deadline
            if moved and exchange.indexed:
                self._deadlines.schedule(exchange)
            return
        self._cut(exchange, cause)
        self._record(Cut(exchange.began_by, cause.reason, decision))

    def _cut(self, exchange: Exchange, cause: Cause) -> None:
        self.cut_count += 1
        exchange.cut(cause.reason)
        self.leave(exchange)
        if self._on_cut is not None:
            self._on_cut(cause.reason, max(0.0, self._clock.now() - cause.since))

    def _index(self, exchange: Exchange) -> None:
        route = exchange.route
        exchange.indexed = True
        self._settled_count += 1
        for peer in exchange.parties:
            self._by_identity.add(peer.id, exchange)
            self._by_serial.add(peer.serial, exchange)
            self._by_issuer.add(peer.issuer, exchange)
        self._by_route.add(route.name if route is not None else "", exchange)
        self._by_upstream.add(exchange.upstream, exchange)

    def _unindex(self, exchange: Exchange) -> None:
        route = exchange.route
        exchange.indexed = False
        self._settled_count -= 1
        for peer in exchange.parties:
            self._by_identity.remove(peer.id, exchange)
            self._by_serial.remove(peer.serial, exchange)
            self._by_issuer.remove(peer.issuer, exchange)
        self._by_route.remove(route.name if route is not None else "", exchange)
        self._by_upstream.remove(exchange.upstream, exchange)


def _keys(peer: Peer) -> tuple[SpiffeId | str, ...]:
    return (peer.id, peer.serial, peer.issuer)

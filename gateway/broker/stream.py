"""One brokered stream: asked for over one tunnel, decided with both its ends, joined to another, and left with its last
byte.

Laws held here:
- the target hears nothing of a stream before it is permitted and on record; the two are joined only once the target has
  taken it;
- what touches either end touches the stream: it is decided again, or cut, both ways at once;
- bytes pass as they come, and room for more is given back to a sender only for what left towards the other side.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from foundation.tunnel import Stream, StreamUser
from foundation.wire.streams import StreamAnswer, StreamRefusal, StreamRequest
from gateway.access.lines import Access
from gateway.broker.transport import refused_for
from gateway.proxy.deciding import Deciding
from gateway.proxy.exchange import NEVER
from gateway.proxy.identify import Caller, Peer
from gateway.proxy.route import RouteTable
from gateway.proxy.services import ConnectionServices
from policies.model import FOREVER, STREAM, Permit
from policies.routes import Route

_METHOD = b"STREAM"
_LOG = logging.getLogger(__name__)


class Reach(Protocol):
    """The way to a target: its tunnel here, or who holds it."""

    target: Peer

    async def open(self, user: StreamUser, permit: Permit, request: StreamRequest, caller: Caller) -> Stream:
        """Ask there for the permitted stream. Raises `Fault`."""
        ...


class Side:
    """Implements `StreamUser` for one end: whatever comes goes out at the other."""

    __slots__ = ("ended_there", "joined", "other", "passed", "stream")

    def __init__(self, joined: BrokeredStream) -> None:
        self.joined = joined
        self.stream: Stream | None = None
        self.other: Side
        self.passed = 0  # bytes that came in here
        self.ended_there = False

    def accepted(self, document: bytes) -> None:
        self.joined.answered(document)

    def refused(self, document: bytes) -> None:
        self.joined.turned_away(document)

    def received(self, data: bytes) -> None:
        out = self.other.stream
        self.passed += len(data)
        self.joined.moved()
        if out is not None:
            out.write(data)

    def sent(self, size: int) -> None:
        source = self.other.stream
        if source is not None:
            source.consumed(size)
        if self.other.ended_there:
            self.joined.half_over()

    def datagram_received(self, data: bytes) -> None:
        out = self.other.stream
        self.passed += len(data)
        self.joined.moved()
        if out is not None:
            out.send_datagram(data)

    def ended(self) -> None:
        self.ended_there = True
        if self.other.stream is not None:
            self.other.stream.end()
        self.joined.half_over()

    def over(self, reason: Reason) -> None:
        self.stream = None
        self.joined.lost(reason)


class BrokeredStream(Deciding):
    """`due` is when it has waited for too long (monotonic seconds)."""

    __slots__ = ("_begun", "_calling", "_far", "_near", "_reach", "_reached", "_span", "_status", "_wanted", "due")

    def __init__(
        self,
        services: ConnectionServices,
        caller: Caller,
        wanted: StreamRequest,
        route: Route,
        near: Stream,
        reach: Reach,
        answer_within: float,
    ) -> None:
        """`near` is the stream that `caller` asked for; `reach` leads to the target."""
        super().__init__(services, caller, STREAM, route, self._cut, reach.target)
        self._wanted = wanted
        self._reach = reach
        self._near, self._far = Side(self), Side(self)
        self._near.other, self._far.other = self._far, self._near
        self._near.stream = near
        near.user = self._near
        self._calling: asyncio.Task[None] | None = None
        self._reached = False
        self._status = 0
        self._begun = services.clock.monotonic()
        self._span = services.spans("stream", None)
        self.due = self._begun + answer_within

    def begin(self) -> None:
        """Register, then decide."""
        self._services.registry.register(self._guard)
        self._span.stage("decide")
        self._decide()

    def _named(self) -> tuple[bytes, bytes]:
        return _METHOD, self._wanted.target.encode("ascii")

    def _route_in(self, table: RouteTable) -> Route:
        return stream_route(table, self._wanted)

    # --- call the target --------------------------------------------------------------------------------------

    def _forward(self, permit: Permit) -> None:
        self._span.stage("call")
        self._calling = asyncio.get_running_loop().create_task(self._call(permit))

    async def _call(self, permit: Permit) -> None:
        try:
            stream = await self._reach.open(self._far, permit, self._wanted, self._caller)
        except Fault as fault:
            self._calling = None
            self.refuse(fault)
            return
        except Exception:
            _LOG.exception("a target could not be called")
            self._calling = None
            self.refuse(Fault(Reason.INTERNAL))
            return
        self._calling = None
        self._far.stream = stream
        if self.over:
            stream.reset(Reason.TUNNEL_LOST)

    def answered(self, document: bytes) -> None:
        """The target took it: join the two, if it still stands."""
        if self.over or self._near.stream is None or self._reached:
            return
        if self._guard.generation != self._decided_at_generation:
            self._end_far(Reason.CUT_BY_CHANGE)
            self._decide_anew()
            return
        self._reached = True
        self._status = Reason.GRANTED.status
        self._near.stream.accept(self._near, StreamAnswer(self._decision_id()).encode())
        self.due = NEVER
        self.moved()
        self._span.stage("open")

    def turned_away(self, document: bytes) -> None:
        """The target did not take it, for a reason of its own."""
        self._far.stream = None
        self.refuse(Fault(refused_for(document)))

    # --- while it is open --------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Something passed: the pause that the route allows begins anew."""
        route = self._route
        if route.idle_timeout:
            self.due = self._services.clock.monotonic() + route.idle_timeout
        if route.timeout:
            self.due = min(self.due, self._begun + route.timeout)

    @property
    def is_timed(self) -> bool:
        """Whether its `due` is ever to be looked at once it is open."""
        return bool(self._route.idle_timeout or self._route.timeout)

    def half_over(self) -> None:
        """One side has sent all that it will: once both have, and all of it has left, it is over."""
        if self._near.ended_there and self._far.ended_there:
            waiting = [side for side in (self._near, self._far) if side.stream is not None and side.stream.backlog]
            if not waiting:
                self._end(Reason.GRANTED)

    # --- ends -----------------------------------------------------------------------------------------------------

    def lost(self, reason: Reason) -> None:
        """One side was reset, its tunnel is gone, or the stream may not go on: both sides are over, at once."""
        self._end_far(reason)
        near, self._near.stream = self._near.stream, None
        if near is not None:
            near.reset(reason)
        self._end(reason)

    def timed_out(self) -> None:
        """Its `due` has come."""
        if not self._reached:
            self.refuse(Fault(Reason.UPSTREAM_TIMEOUT))
        else:
            self.lost(Reason.REQUEST_TIMEOUT)

    def refuse(self, fault: Fault) -> None:
        """Tell the one who asked, by `fault`'s reason and the decision; both ends are over."""
        if self.over:
            return
        self._status = fault.reason.status
        self._end_far(fault.reason)
        near, self._near.stream = self._near.stream, None
        if near is not None:
            if self._reached:
                near.reset(fault.reason)
            else:
                near.refuse(StreamRefusal(fault.reason, self._decision_id()).encode())
        self._end(fault.reason)

    def _cut(self, reason: Reason) -> None:
        if self._reached:
            self.lost(reason)
        else:
            self.refuse(Fault(reason))

    def _end_far(self, reason: Reason) -> None:
        far, self._far.stream = self._far.stream, None
        if far is not None:
            far.reset(reason)
        if self._calling is not None:
            self._calling.cancel()
            self._calling = None

    def _end(self, reason: Reason) -> None:
        if self.over:
            return
        self.over = True
        self.due = NEVER
        self._leave()
        services = self._services
        seconds = services.clock.monotonic() - self._begun
        if self._span.recorded:
            self._end_span(reason)
        services.metrics.answered(self._route.name, reason, self._status, seconds)
        if services.access is not None:
            services.access(self._access(reason, seconds))

    def _end_span(self, reason: Reason) -> None:
        span = self._span
        span.set("sallyport.route", self._route.name)
        span.set("sallyport.reason", reason.code)
        span.set("sallyport.decision", self._decision_id())
        span.set("sallyport.identity", self._caller.text)
        span.set("sallyport.target", self._wanted.target)
        span.end("" if self._reached else reason.code)

    def _access(self, reason: Reason, seconds: float) -> Access:
        return Access(
            at=self._services.clock.now() - seconds,
            seconds=seconds,
            address=self._caller.source[0] if self._caller.source else "",
            identity=self._caller.text,
            method=_METHOD,
            target=self._wanted.target.encode("ascii"),
            protocol=self._wanted.protocol,
            status=self._status,
            received=self._near.passed,
            sent=self._far.passed,
            route=self._route.name,
            reason=reason.code,
            decision=self._decision_id(),
            upstream=self._route.service,
            trace=self._span.context.trace_id if self._span.recorded else "",
            referer=b"",
            agent=b"",
        )


class WaitingStreams:
    """The streams of one connection that may be late: their `due` is looked at now and then."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[BrokeredStream, None] = {}

    def add(self, stream: BrokeredStream) -> None:
        self._streams[stream] = None

    def sweep(self, now: float) -> None:
        """End those that are late at `now` (monotonic seconds), and let go of what can be late no more."""
        for stream in list(self._streams):
            if stream.due <= now:
                stream.timed_out()
            if stream.over or (stream.due == NEVER and not stream.is_timed):
                del self._streams[stream]


def stream_route(table: RouteTable, wanted: StreamRequest) -> Route:
    """The route that is asked for. Raises `Fault(ROUTE_UNKNOWN)`."""
    route = table.stream(wanted.route)
    if route.protocol != wanted.protocol:
        raise Fault(Reason.ROUTE_UNKNOWN, f"the route carries {route.protocol}")
    return route


def by_name_alone(target: SpiffeId) -> Peer:
    """A target whose tunnel ends elsewhere: there its certificate is known, and looked at."""
    return Peer(target, "", 0.0, FOREVER, b"")


def node(trust_domain: str, name: str) -> SpiffeId:
    """The node of this name, which can be a target."""
    return SpiffeId(trust_domain, Kind.NODE, name)

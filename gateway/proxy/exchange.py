"""One request and its answer: registered, decided, recorded, forwarded, and left with its last byte.

The order is the law: nothing is dialled or answered before the decision is on record, and what is written upstream is
the request that the permit holds, not the one that was read. A cut ends all of it from whatever step it is at. How the
client's protocol says it is the client's affair (`gateway.proxy.client.Client`); upstreams speak HTTP/1.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.trace import TraceContext
from gateway.access.lines import Access
from gateway.proxy.assertion import PLAIN
from gateway.proxy.client import Client
from gateway.proxy.deciding import Deciding
from gateway.proxy.headers import Field, value_of
from gateway.proxy.http1 import CHUNKED, RequestHead, ResponseHead
from gateway.proxy.http1_write import chunks, request_head, trace_lines
from gateway.proxy.identify import Peer
from gateway.proxy.route import RouteTable
from gateway.proxy.upgrade import check_switched
from gateway.proxy.upstream_connection import UpstreamConnection
from gateway.upstreams.budget import Failure, is_repeatable
from gateway.upstreams.endpoint import Endpoint
from gateway.upstreams.pool import Repeats
from policies.model import CanonicalRequest, Permit
from policies.routes import Route
from policies.upstreams import Destination, IdentityHeader

NEVER = float("inf")
_FIRST_ERROR = 500
_UNAVAILABLE = 503


class HttpExchange(Deciding):
    """Implements `upstream_connection.Sink`. `due` is when it has waited for too long (monotonic seconds)."""

    __slots__ = (
        "_begun",
        "_blocked",
        "_body_done",
        "_client",
        "_dial",
        "_head",
        "_permit",
        "_received",
        "_repeats",
        "_retried",
        "_sent",
        "_span",
        "_status",
        "_tunnel",
        "_upstream",
        "due",
    )

    def __init__(
        self, client: Client, head: RequestHead, request: CanonicalRequest, route: Route, target: Peer | None = None
    ) -> None:
        """`target` is the node that answers, where a node does."""
        super().__init__(client.services, client.caller, request, route, self._cut, target)
        self._client = client
        self._head = head
        self._body_done = head.length == 0  # all of the request's body went upstream
        self._permit: Permit | None = None
        self._upstream: UpstreamConnection | None = None
        self._dial: asyncio.Task[None] | None = None
        self._received = self._sent = 0  # bytes of bodies, or of a tunnel
        self._retried = False  # on a fresh connection, as an idle one had died
        self._repeats: Repeats | None = None
        self._blocked = False  # the upstream reads more slowly than the client writes
        self._tunnel = False
        self._status = 0
        self._begun = self._services.clock.monotonic()
        self._span = self._services.spans("exchange", TraceContext.parse(head.traceparent.decode("latin-1")))
        self.due = NEVER

    @property
    def buffered(self) -> int:
        """Bytes that are held for the upstream, or came from it and were not passed on."""
        return self._upstream.buffered if self._upstream is not None else 0

    def begin(self) -> None:
        """Register, then decide."""
        self._services.registry.register(self._guard)
        self._span.stage("decide")
        self._decide()

    def _named(self) -> tuple[bytes, bytes]:
        return self._head.method, self._head.target

    def _route_in(self, table: RouteTable) -> Route:
        return table.match(self._request)

    # --- forward -------------------------------------------------------------------------------------

    def _forward(self, permit: Permit) -> None:
        self._permit = permit
        fault = self._unfit()
        if fault is not None:
            self.refuse(fault)
            return
        self._span.stage("dial")
        self._dial = self._dial_for(permit, fresh=False)

    def _dial_for(self, permit: Permit, *, fresh: bool) -> asyncio.Task[None] | None:
        """Have a connection lent: at once, or by the task that is given back. `fresh`: one that was not used before."""
        return self._services.upstreams.open(permit, self._route, self, self._repeats, fresh=fresh)

    def _unfit(self) -> Fault | None:
        """Why a permitted request cannot be forwarded as it is."""
        head = self._head
        if head.length > 0 and head.length > self._body_bound():
            return self._too_large()
        if head.upgrade and head.upgrade.decode("ascii") not in self._route.upgrades:
            return Fault(Reason.UPGRADE_REFUSED)
        if head.upgrade and self._client.has_unread:
            return Fault(Reason.UPGRADE_REFUSED, "bytes came before the upgrade was answered")
        return None

    def connected(self, upstream: UpstreamConnection) -> None:
        self._dial = None
        if self.over or self._permit is None:
            upstream.abort()
            return
        if not self._still_stands():
            upstream.abort()
            return
        self._upstream = upstream
        self._services.registry.dialled(self._guard, upstream.leads_to)
        self._span.stage("upstream")
        self._await_next(self._body_done)
        upstream.request_done = self._body_done
        upstream.write(self._request_head(self._permit, upstream.endpoint.pool.value.identity))
        if not self._body_done:
            self._client.take_body()

    def _request_head(self, permit: Permit, told: tuple[IdentityHeader, ...]) -> bytes:
        """What the permit allows, and who asks, from us, in the forms that the upstream is `told`."""
        if told == PLAIN:
            who = b"%bx-sallyport-decision: %b\r\n" % (self._caller.line, permit.id.encode("ascii"))
        else:
            who = b"".join(self._services.assertions.lines(told, self._caller, permit, self._head))
        trace = trace_lines(self._head, self._span.context)
        return request_head(permit.query.request, self._head, self._client.via, who, trace)

    @property
    def source(self) -> tuple[str, int] | None:
        return self._caller.source

    def failed(self, fault: Fault, failure: Failure, at: Endpoint | None) -> None:
        self._dial = self._upstream = None
        if self.over:
            return
        if self._may_repeat(failure, at):
            self._repeat(fresh=failure is Failure.STALE)
        else:
            self.refuse(fault)

    def _may_repeat(self, failure: Failure, at: Endpoint | None) -> bool:
        """Whether the request is to be sent once more: where that can do no harm, and its pool's budget allows it."""
        safe = self._request.action == "get" and self._head.length == 0
        if at is None or not is_repeatable(failure, safe=safe, retry_503=self._route.retry_503):
            return False
        if failure is not Failure.STALE:
            self._repeats = self._repeats or Repeats()
            return self._repeats.begin(failure, at)
        # The upstream had closed an idle connection: as far as can be told this was no try at all. Once.
        once, self._retried = not self._retried, True
        return once

    def _repeat(self, *, fresh: bool) -> None:
        if self._permit is not None:
            self._dial = self._dial_for(self._permit, fresh=fresh)

    # --- the request's body, and what a tunnel carries -------------------------------------------------

    def body_came(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        """A piece of the request's body, which may be empty; after `done` none comes, and its trailers are these."""
        upstream = self._upstream
        if upstream is None:
            return
        self._received += len(payload)
        if self._received > self._body_bound():
            self.refuse(self._too_large())
            return
        self._body_done = upstream.request_done = done
        data = chunks(payload, done, trailers) if self._head.length == CHUNKED else payload
        if data:
            upstream.write(data)
        if self._status == 0:
            self._await_next(done)

    def tunnel_came(self, data: bytes) -> None:
        if self._route.idle_timeout:
            self._await_more()
        if self._upstream is not None:
            self._upstream.write(data)

    def spoke_early(self) -> bool:
        """Bytes came while an answer was awaited. Behind a request to upgrade they are refused once it is permitted;
        whether they were."""
        if not self._head.upgrade or self._permit is None:
            return False
        self.refuse(Fault(Reason.UPGRADE_REFUSED, "bytes came before the upgrade was answered"))
        return True

    def upstream_full(self) -> None:
        self._blocked = True
        self._client.pause_reading()

    def upstream_drained(self) -> None:
        self._blocked = False
        self._client.resume_reading()

    # --- the answer --------------------------------------------------------------------------------------

    def informational(self, head: ResponseHead) -> None:
        """Pass it on (RFC 9110 §15.2); 100 only to who asked for it."""
        if head.status == 100 and (not self._head.expects_continue or self._body_done):
            return
        self._client.inform(head)

    def response(self, head: ResponseHead, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        if head.status == _UNAVAILABLE and self._route.retry_503 and self._elsewhere(done):
            return
        self._status = head.status
        self._await_more()
        if done:
            self._upstream = None  # it has let go of this exchange already
        self._sent += len(payload)
        self._client.respond(head, self._decision_id(), payload, done, trailers if self._head.takes_trailers else ())

    def _elsewhere(self, done: bool) -> bool:
        """The upstream says that it is unavailable: ask another address, if that may be; whether it is asked."""
        upstream = self._upstream
        if upstream is None or not upstream.endpoint.pool.has_another or self.over:
            return False
        if not self._may_repeat(Failure.UNAVAILABLE, upstream.endpoint):
            return False
        self._upstream = None
        if not done:
            upstream.abort()
        self._repeat(fresh=False)
        return True

    def response_data(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        if done:
            self._upstream = None
        if self._route.idle_timeout:
            self._await_more()
        self._sent += len(payload)
        self._client.respond_more(payload, done, trailers if self._head.takes_trailers else ())

    def upgraded(self, head: ResponseHead, data: bytes) -> None:
        check_switched(self._head, head)
        self._status, self._tunnel = 101, True
        self._await_more()
        self._client.switch(head, self._decision_id(), data)

    def tunnelled(self, data: bytes) -> None:
        if self._route.idle_timeout:
            self._await_more()
        self._sent += len(data)
        self._client.tunnel(data)

    def broken(self, fault: Fault) -> None:
        """Half an answer is out: only the connection's end can tell the client that it is half. A tunnel just ends."""
        self._upstream = None
        if self._tunnel:
            self._end(self._reason())
            self._client.end_tunnel()
        else:
            self._end(fault.reason)
            self._client.abort(fault.reason)

    # --- ends ------------------------------------------------------------------------------------------------

    def client_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_drained(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def client_gone(self) -> None:
        """The client's connection ended: so does everything that was done for it."""
        self._end(self._reason())

    def timed_out(self) -> None:
        """Its `due` has come: the one whose turn it was is late."""
        late = Reason.UPSTREAM_TIMEOUT if self._body_done or self._blocked else Reason.REQUEST_TIMEOUT
        if late is Reason.UPSTREAM_TIMEOUT and self._upstream is not None and self._status == 0:
            self._upstream.late()
        self.refuse(Fault(late))

    def _await_next(self, sent: bool) -> None:
        """The answer's turn, once all is `sent`; until then the next piece of the request's body, and all in all for no
        longer than a request may take."""
        settings, now = self._services.settings, self._services.clock.monotonic()
        if sent:
            self.due = now + self._route.response_timeout
        else:
            self.due = min(now + settings.body_timeout, self._begun + settings.request_timeout)
        if self._route.timeout:
            self.due = min(self.due, self._begun + self._route.timeout)

    def _await_more(self) -> None:
        """The next byte of an answer or a tunnel, and its last one, for as long as the route allows."""
        route, due = self._route, NEVER
        if route.idle_timeout:
            due = self._services.clock.monotonic() + route.idle_timeout
        self.due = min(due, self._begun + route.timeout) if route.timeout else due

    def _body_bound(self) -> int:
        return min(self._route.max_body, self._services.settings.body_bytes)

    def _too_large(self) -> Fault:
        return Fault(Reason.BODY_TOO_LARGE, f"at most {self._body_bound()} bytes")

    def answered(self) -> None:
        """The answer's last byte is out."""
        self._end(self._reason())

    def refuse(self, fault: Fault) -> None:
        """Answer with `fault`, or end the client's side where an answer has begun."""
        if self.over:
            return
        started = self._status != 0
        self._status = fault.reason.status
        self._end(fault.reason)
        if started:
            self._client.abort(fault.reason)
        else:
            self._client.refuse(fault, self._decision_id())

    def _cut(self, reason: Reason) -> None:
        self._end(reason)
        self._client.abort(reason)

    def _end(self, reason: Reason) -> None:
        if self.over:
            return
        self.over = True
        if self._dial is not None:
            self._dial.cancel()
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        if self._repeats is not None:
            self._repeats.end()
        self._leave()
        services = self._services
        seconds = services.clock.monotonic() - self._begun
        if self._span.recorded:
            self._end_span(reason, seconds)
        else:
            services.metrics.answered(self._route.name, reason, self._status, seconds)
        if services.access is not None:
            services.access(self._access(reason, seconds))

    def _end_span(self, reason: Reason, seconds: float) -> None:
        span, route, services = self._span, self._route.name, self._services
        span.set("sallyport.route", route)
        span.set("sallyport.reason", reason.code)
        span.set("sallyport.decision", self._decision_id())
        span.set("sallyport.identity", self._caller.text)
        span.set("http.request.method", self._head.method.decode("latin-1"))
        span.set("http.response.status_code", self._status)
        span.set("server.address", self._led_to())
        span.end("" if self._permit is not None and self._status < _FIRST_ERROR else reason.code)
        trace = span.context.trace_id
        services.metrics.answered(route, reason, self._status, seconds, trace, services.clock.now())

    def _led_to(self) -> str:
        to = self._guard.upstream
        return str(to.address) if isinstance(to, Destination) else ""

    def _access(self, reason: Reason, seconds: float) -> Access:
        head = self._head
        return Access(
            at=self._services.clock.now() - seconds,
            seconds=seconds,
            address=self._caller.source[0] if self._caller.source else "",
            identity=self._caller.text,
            method=head.method,
            target=head.target,
            protocol="HTTP/" + self._client.via.split(b" ")[1].decode("ascii"),
            status=self._status,
            received=self._received,
            sent=self._sent,
            route=self._route.name,
            reason=reason.code,
            decision=self._decision_id(),
            upstream=self._led_to(),
            trace=self._span.context.trace_id if self._span.recorded else "",
            referer=value_of(head.fields, b"referer"),
            agent=value_of(head.fields, b"user-agent"),
        )

"""One client's connection: identified once, then one exchange after another.

Bytes that belong to no exchange yet are held, up to a bound, and reading stops there: what is read is never more than
what can be passed on.
"""

from __future__ import annotations

import asyncio
from typing import cast

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.tls import peer_certificate
from gateway.proxy.exchange import NEVER, HttpExchange
from gateway.proxy.http1 import HEAD_END, Body, LengthBody, RequestHead, body_of
from gateway.proxy.identify import Peer, identify
from gateway.proxy.normalise import canonical
from gateway.proxy.record import entry_of
from gateway.proxy.refusal import refusal
from gateway.proxy.services import ConnectionServices
from policies.model import CanonicalRequest
from policies.routes import Route

WRITE_HIGH_WATER = 256 << 10
HELD_BYTES = 64 << 10


class ClientConnection(asyncio.Protocol):
    """Implements `gateway.streams.registry.Connection`. `due` is when the client is late (monotonic seconds)."""

    __slots__ = (
        "_exchange",
        "_full_until",
        "_held",
        "_late",
        "_lingering",
        "_paused",
        "_refusing",
        "_registered",
        "_siblings",
        "_skip",
        "_transport",
        "due",
        "identity",
        "identity_line",
        "identity_text",
        "peer",
        "serial",
        "services",
    )

    peer: Peer
    identity: SpiffeId
    serial: str

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection]) -> None:
        """`siblings` are the listener's connections, of which this is one from its handshake to its end."""
        self.services = services
        self._siblings = siblings
        self._transport: asyncio.Transport | None = None
        self._exchange: HttpExchange | None = None
        self._held = b""
        self._skip: Body | None = None
        self._lingering = -1  # bytes that are still read behind the last answer; negative before it
        self._late: Reason | None = None  # what to answer when `due` comes; None: end in silence
        self._paused = False
        self._full_until = NEVER  # the client must have read on by then
        self._refusing = False
        self._registered = False
        self.due = NEVER

    # --- what the event loop calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast(asyncio.Transport, transport)  # uvloop's are not of the class
        stream.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._siblings.add(self)
        try:
            self._identify(stream)
        except Fault as fault:
            self.services.metrics.refused_connection(fault.reason)
            self.write(refusal(fault, "", close=True, head_only=False))
            self._linger()
            return
        self._wait(self.services.settings.idle_timeout)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if self._lingering >= 0:
            self._drop(data)
        elif exchange is not None:
            self._hold(exchange.client_sent(data))
        elif self._refusing:
            self._hold(data)
        else:
            self._hold(data)
            self._next()

    def eof_received(self) -> None:
        """TLS has no half-closed connections here: the client's end is the connection's."""

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.due = NEVER
        if self._registered:
            self.services.registry.disconnected(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
        self._siblings.discard(self)

    def pause_writing(self) -> None:
        self._full_until = self.services.clock.monotonic() + self.services.settings.body_timeout
        if self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        self._full_until = NEVER
        if self._exchange is not None:
            self._exchange.client_drained()
        elif self._held and not self._refusing and self._lingering < 0:
            self._next()

    # --- from bytes to an exchange ----------------------------------------------------------------------

    def _identify(self, transport: asyncio.Transport) -> None:
        peer = identify(peer_certificate(transport), self.services.trust_domain)
        registry, settings = self.services.registry, self.services.settings
        if registry.connections_of(peer.id) >= settings.connections_per_identity:
            raise Fault(Reason.OVERLOADED, "too many connections of this identity")
        self.peer, self.identity, self.serial = peer, peer.id, peer.serial
        self.identity_text = str(peer.id)
        self.identity_line = b"x-sallyport-identity: %b\r\n" % self.identity_text.encode("ascii")
        registry.connected(self)
        self._registered = True

    def _next(self) -> None:
        """Begin the next request when its head is whole, and the client reads its answers."""
        if self._full_until != NEVER:
            return
        if self._skip is not None and not self._skipped(self._skip):
            return
        raw = self._held
        end = raw.find(HEAD_END) + 4
        try:
            if end < 4:
                self._await_head(raw)
                return
            head = self.services.requests.read(raw[:end])
        except Fault as fault:
            self._refuse(fault, None)
            return
        self._held = raw[end:]
        self.due = NEVER
        self._begin(head)

    def _await_head(self, raw: bytes) -> None:
        if not raw:
            self._wait(self.services.settings.idle_timeout)
        elif self._late is not Reason.REQUEST_TIMEOUT:  # the clock runs from a head's first byte
            self._wait(self.services.settings.header_timeout, Reason.REQUEST_TIMEOUT)
        self.services.requests.check_partial(raw)

    def _begin(self, head: RequestHead) -> None:
        try:
            request = canonical(head.method, head.target, head.host, head.upgrade)
            route = self._route(request)
        except Fault as fault:
            self._refuse(fault, head)
            return
        self._exchange = exchange = HttpExchange(self, head, request, route)
        exchange.begin()

    def _route(self, request: CanonicalRequest) -> Route:
        table = self.services.routes()
        if table is None:
            raise Fault(Reason.REVISION_MISSING)
        return table.match(request)

    def _refuse(self, fault: Fault, head: RequestHead | None) -> None:
        """Put on record, then answer, that something is no request or has no route. What cannot be framed is the
        connection's last."""
        services = self.services
        unread = None if head is None or head.length == 0 else body_of(head.length, Reason.REQUEST_AMBIGUOUS)
        keep = head is not None and head.keep_alive and not services.draining and self.can_skip(head, unread)
        self._refusing = True
        self.due = NEVER
        decision = services.decider.refuse(fault.reason)
        method, target = (head.method, head.target) if head is not None else (b"", b"")

        def answer(unrecorded: Fault | None) -> None:
            self._refusing = False
            told = unrecorded or fault
            head_only = head is not None and head.method == b"HEAD"
            self.write(refusal(told, decision.id, close=not keep, head_only=head_only))
            services.metrics.answered("", told.reason, told.reason.status, 0.0)
            self.answered(keep=keep, unread=unread)

        entry = entry_of(decision, self.identity_text, method, target, None, services.clock.now())
        services.records.before(entry, answer)

    # --- what the exchange calls --------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def hand_over(self) -> None:
        """The exchange takes its body from now on: give it what is held, and read again."""
        held, self._held = self._held, b""
        self.resume_reading()
        if held and self._exchange is not None:
            self._hold(self._exchange.client_sent(held))

    def pause_reading(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._paused and len(self._held) < HELD_BYTES:
            self._paused = False
            self._transport.resume_reading()

    @property
    def has_unread(self) -> bool:
        return bool(self._held)

    def can_skip(self, head: RequestHead, unread: Body | None) -> bool:
        """Whether the rest of a refused request can be read and dropped, so that the connection goes on."""
        if unread is None:
            return not head.upgrade
        return isinstance(unread, LengthBody) and head.length <= HELD_BYTES and not head.expects_continue

    def answered(self, *, keep: bool, unread: Body | None) -> None:
        """The exchange is over, its answer written whole. `unread` is what was not read of its body."""
        self._exchange = None
        if not keep:
            if unread is None and not self._held:
                self.close()
            else:
                self._linger()
            return
        self._skip = unread
        self._wait(self.services.settings.idle_timeout)
        self.resume_reading()
        if self._held:
            self._next()

    def close(self) -> None:
        """End it once what was written has gone out."""
        self._exchange = None
        self.due = NEVER
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: Reason) -> None:
        """End it now, without a TLS goodbye: a client must not take a cut for an end."""
        if self._transport is not None:
            self._transport.abort()

    # --- the listener's sweep, and ends ---------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """End what is late at `now` (monotonic seconds)."""
        exchange = self._exchange
        if self._full_until <= now:
            self.abort(Reason.REQUEST_TIMEOUT)
        elif exchange is not None:
            if exchange.due <= now:
                exchange.timed_out()
        elif self.due <= now:
            if self._late is Reason.REQUEST_TIMEOUT and self._lingering < 0:
                self._refuse(Fault(Reason.REQUEST_TIMEOUT), None)
            else:
                self.close()

    def close_if_idle(self) -> None:
        """While draining: nothing is under way here."""
        if self._exchange is None and not self._refusing and self._lingering < 0:
            self.close()

    def _wait(self, seconds: float, late: Reason | None = None) -> None:
        self.due = self.services.clock.monotonic() + seconds
        self._late = late

    def _hold(self, data: bytes) -> None:
        if data:
            self._held = self._held + data if self._held else data
            if len(self._held) >= HELD_BYTES:
                self.pause_reading()

    def _skipped(self, body: Body) -> bool:
        """Drop what belongs to a refused request's body; whether all of it came."""
        piece = body.feed(self._held)
        self._held = piece.rest
        if piece.done:
            self._skip = None
        return piece.done

    def _linger(self) -> None:
        """Read on for a while: closing with unread bytes would reset the connection, and the client might lose the
        answer (RFC 9112 §9.6)."""
        self._lingering = self.services.settings.linger_bytes
        self._held = b""
        self._wait(self.services.settings.linger_timeout)
        self.resume_reading()

    def _drop(self, data: bytes) -> None:
        self._lingering -= len(data)
        if self._lingering <= 0:
            self.close()

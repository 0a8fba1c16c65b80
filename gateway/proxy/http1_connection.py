"""One client's HTTP/1.1 connection (RFC 9112): one exchange after another, each framed as the protocol wants it.

Bytes that belong to no exchange yet are held, up to a bound, and reading stops there: what is read is never more than
what can be passed on.
"""

from __future__ import annotations

from collections.abc import Sequence

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.connection import ClientConnection
from gateway.proxy.exchange import NEVER, HttpExchange
from gateway.proxy.headers import Field
from gateway.proxy.http1 import CHUNKED, HEAD_END, UNTIL_CLOSE, Body, LengthBody, RequestHead, ResponseHead, body_of
from gateway.proxy.http1_write import chunks, informational, refused, response_head, switched
from gateway.proxy.refusal import refusal
from gateway.proxy.services import ConnectionServices

HELD_BYTES = 64 << 10
# What the client's next bytes are.
_HEAD = 0  # a request's head
_HELD = 1  # kept until a decision, a dial or an answer has come
_BODY = 2  # the body of the exchange's request
_TUNNEL = 3  # the exchange's, as they are
_DROPPED = 4  # nothing: the last answer is out


class Http1Connection(ClientConnection):
    """Implements `gateway.proxy.client.Client` for one exchange at a time."""

    __slots__ = (
        "_body",
        "_body_begun",
        "_chunked",
        "_exchange",
        "_head",
        "_held",
        "_keep",
        "_late",
        "_lingering",
        "_next_is",
        "_skip",
    )

    via = b"via: 1.1 sallyport\r\n"

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection]) -> None:
        super().__init__(services, siblings)
        self._exchange: HttpExchange | None = None
        self._head: RequestHead | None = None  # of the exchange
        self._next_is = _HEAD
        self._held = b""
        self._body: Body | None = None  # what reads the rest of the request's body; None when all of it came
        self._body_begun = False  # a piece of it went to the exchange
        self._skip: Body | None = None
        self._chunked = False  # the answer's body is sent in chunks
        self._keep = False  # the answer is not the connection's last
        self._lingering = 0  # bytes that are still read behind the last answer
        self._late: Reason | None = None  # what to answer when `due` comes; None: end in silence

    # --- what the event loop calls --------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        next_is = self._next_is
        if next_is == _HEAD:
            self._hold(data)
            self._next()
        elif next_is == _BODY:
            self._read_body(data)
        elif next_is == _HELD:
            self._hold_early(data)
        elif next_is == _DROPPED:
            self._drop(data)
        elif self._exchange is not None:
            self._exchange.tunnel_came(data)

    def pause_writing(self) -> None:
        self._full_until = self.services.clock.monotonic() + self.services.settings.body_timeout
        if self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        self._full_until = NEVER
        if self._exchange is not None:
            self._exchange.client_drained()
        elif self._held and self._next_is == _HEAD:
            self._next()

    def _welcomed(self) -> None:
        self._wait(self.services.settings.first_byte_timeout)

    @property
    def under_way(self) -> int:
        return 0 if self._exchange is None else 1

    @property
    def buffered(self) -> int:
        exchange = self._exchange
        return super().buffered + len(self._held) + (exchange.buffered if exchange is not None else 0)

    def _turned_away(self, fault: Fault) -> None:
        self.write(refused(refusal(fault, ""), close=True, head_only=False))
        self._linger()

    def _lost(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    # --- from bytes to an exchange ----------------------------------------------------------------------

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
            self._refuse_unasked(fault, None)
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
            exchange = self._open(self, head)
        except Fault as fault:
            self._refuse_unasked(fault, head)
            return
        self._exchange, self._head = exchange, head
        self._body = None if head.length == 0 else body_of(head.length, Reason.REQUEST_AMBIGUOUS, head.nominated)
        self._body_begun = False
        self._next_is = _HELD
        exchange.begin()

    def _refuse_unasked(self, fault: Fault, head: RequestHead | None) -> None:
        """Put on record, then answer, that something is no request or has no route. What cannot be framed is the
        connection's last."""
        unread = None if head is None or head.length == 0 else body_of(head.length, Reason.REQUEST_AMBIGUOUS)
        keep = head is not None and head.keep_alive and not self.services.draining and _can_skip(head, unread)
        method, target = (head.method, head.target) if head is not None else (b"", b"")
        self._next_is = _HELD
        self.due = NEVER

        def answer(told: Fault, decision: str) -> None:
            self.write(refused(refusal(told, decision), close=not keep, head_only=method == b"HEAD"))
            self._go_on(keep, unread)

        self._record_refusal(fault, method, target, answer)

    # --- the request's body, and what a tunnel carries ----------------------------------------------------

    @property
    def has_unread(self) -> bool:
        return bool(self._held)

    def take_body(self) -> None:
        held, self._held = self._held, b""
        self._next_is = _BODY
        self.resume_reading()
        if held:
            self._read_body(held)

    def _read_body(self, data: bytes) -> None:
        exchange, body = self._exchange, self._body
        if exchange is None or body is None:
            return
        self._body_begun = True
        try:
            payload, rest, done, trailers = body.feed(data)
        except Fault as fault:
            exchange.refuse(fault)
            return
        if done:
            self._body, self._next_is = None, _HELD
        exchange.body_came(payload, done, trailers)
        if rest and self._exchange is exchange:
            self._hold(rest)

    def _hold_early(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or not exchange.spoke_early():
            self._hold(data)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._paused and len(self._held) < HELD_BYTES:
            self._paused = False
            self._transport.resume_reading()

    # --- the answer ---------------------------------------------------------------------------------------

    def inform(self, head: ResponseHead) -> None:
        self.write(informational(head))

    def respond(
        self, head: ResponseHead, decision: str, payload: bytes, done: bool, trailers: Sequence[Field] = ()
    ) -> None:
        asked = self._head
        if asked is None:
            return
        # An answer that comes before the request's end, or to an upgrade that it refuses, is the connection's last.
        self._keep = keep = asked.keep_alive and self._body is None and not asked.upgrade and not self.services.draining
        self._chunked = chunked = head.length in {CHUNKED, UNTIL_CLOSE}
        head_only = asked.method == b"HEAD"
        raw = response_head(head, decision, chunked=chunked, head_only=head_only, close=not keep)
        self.write(raw + (chunks(payload, done, trailers) if chunked else payload))
        if done:
            self._answered()

    def respond_more(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        data = chunks(payload, done, trailers) if self._chunked else payload
        if data:
            self.write(data)
        if done:
            self._answered()

    def refuse(self, fault: Fault, decision: str) -> None:
        head, unread = self._head, self._body
        if head is None:
            return
        keep = head.keep_alive and not self.services.draining and not self._body_begun and _can_skip(head, unread)
        self.write(refused(refusal(fault, decision), close=not keep, head_only=head.method == b"HEAD"))
        self._go_on(keep, unread)

    def switch(self, head: ResponseHead, decision: str, data: bytes) -> None:
        self._next_is = _TUNNEL
        self.write(switched(head, decision) + data)

    def tunnel(self, data: bytes) -> None:
        self.write(data)

    def end_tunnel(self) -> None:
        self.close()

    def close(self) -> None:
        self._exchange = None
        super().close()

    def _answered(self) -> None:
        if self._exchange is not None:
            self._exchange.answered()
        self._go_on(self._keep, self._body)

    def _go_on(self, keep: bool, unread: Body | None) -> None:
        """An answer is written whole: on to the next request, if this may `keep` the connection. `unread` reads what
        did not come of the last one's body."""
        self._exchange = None
        if not keep:
            if unread is None and not self._held:
                self.close()
            else:
                self._linger()
            return
        self._next_is = _HEAD
        self._skip = unread
        self._wait(self.services.settings.idle_timeout)
        self.resume_reading()
        if self._held:
            self._next()

    # --- the listener's sweep, and ends ---------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        exchange = self._exchange
        if self._full_until <= now:
            self.abort(Reason.REQUEST_TIMEOUT)
        elif exchange is not None:
            if exchange.due <= now:
                exchange.timed_out()
        elif self.due <= now:
            if self._late is Reason.REQUEST_TIMEOUT and self._next_is == _HEAD:
                self._refuse_unasked(Fault(Reason.REQUEST_TIMEOUT), None)
            else:
                self.close()

    def close_if_idle(self) -> None:
        if self._next_is == _HEAD:
            self.close()

    def _wait(self, seconds: float, late: Reason | None = None) -> None:
        self.due = self.services.clock.monotonic() + seconds
        self._late = late

    def _hold(self, data: bytes) -> None:
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
        self._next_is = _DROPPED
        self._lingering = self.services.settings.linger_bytes
        self._held = b""
        self._wait(self.services.settings.linger_timeout)
        self.resume_reading()

    def _drop(self, data: bytes) -> None:
        self._lingering -= len(data)
        if self._lingering <= 0:
            self.close()


def _can_skip(head: RequestHead, unread: Body | None) -> bool:
    """Whether the rest of a refused request can be read and dropped, so that the connection goes on."""
    if unread is None:
        return not head.upgrade
    return isinstance(unread, LengthBody) and head.length <= HELD_BYTES and not head.expects_continue

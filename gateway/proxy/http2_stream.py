"""One stream of an HTTP/2 connection (RFC 9113 §5): one request, its exchange, and the answer in DATA frames.

Memory is bounded in both directions by flow control: of the request's body no more is acknowledged than its upstream
took, and the upstream is held back while the client does not take the answer. A client that takes nothing for too long
loses the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.exchange import NEVER, HttpExchange
from gateway.proxy.headers import Field
from gateway.proxy.http1 import RequestHead, ResponseHead
from gateway.proxy.http2 import connected_fields, informational_fields, refusal_fields, response_fields, trailer_fields
from gateway.proxy.http2_budget import MAX_FRAME_BYTES
from gateway.proxy.identify import Caller
from gateway.proxy.refusal import Refusal, refusal
from gateway.proxy.services import ConnectionServices

if TYPE_CHECKING:
    from gateway.proxy.http2_connection import Http2Connection

# What the client's next DATA is.
_HELD = 0  # kept until a decision, a dial or an answer has come
_BODY = 1  # the body of the request
_TUNNEL = 2  # the tunnel's
_LEAST_PROGRESS = 4096  # bytes that a slow client takes within a time-out, if it owes so many
_CODES = {  # the others are INTERNAL_ERROR
    Reason.CUT_BY_CHANGE: ErrorCodes.CANCEL,
    Reason.CUT_BY_DEADLINE: ErrorCodes.CANCEL,
    Reason.CUT_BY_REVOCATION: ErrorCodes.CANCEL,
    Reason.REQUEST_TIMEOUT: ErrorCodes.ENHANCE_YOUR_CALM,
}


class Http2Stream:
    """Implements `gateway.proxy.client.Client`. `ended`: the client has sent its END_STREAM."""

    __slots__ = (
        "_connection",
        "_exchange",
        "_full",
        "_head",
        "_held",
        "_last",
        "_mark",
        "_next_is",
        "_paused",
        "_pending",
        "_stalled_at",
        "_trailers",
        "_trailers_came",
        "_unacknowledged",
        "ended",
        "id",
    )

    via = b"via: 2.0 sallyport\r\n"

    def __init__(self, connection: Http2Connection, number: int, *, ended: bool) -> None:
        self._connection = connection
        self.id = number
        self.ended = ended
        self._exchange: HttpExchange | None = None
        self._head: RequestHead | None = None
        self._next_is = _HELD
        self._held: list[bytes] = []
        self._unacknowledged = 0  # bytes that count against the client's window
        self._paused = False  # the upstream takes no more
        self._pending = bytearray()  # of the answer, waiting for the client's window or the transport
        self._last = False  # END_STREAM goes out with the last of it
        self._trailers_came: Sequence[Field] = ()  # behind the request
        self._trailers: Sequence[Field] = ()  # behind the answer
        self._full = False  # the upstream is held back
        self._stalled_at = NEVER  # the client must have taken something by then
        self._mark = 0  # bytes to be taken until that time moves on

    def begin(self, exchange: HttpExchange, head: RequestHead) -> None:
        self._exchange, self._head = exchange, head
        exchange.begin()

    @property
    def services(self) -> ConnectionServices:
        return self._connection.services

    @property
    def caller(self) -> Caller:
        return self._connection.caller

    @property
    def is_undecided(self) -> bool:
        return self._exchange is not None and not self._exchange.decided

    @property
    def buffered(self) -> int:
        """Bytes that are held for this stream, in either direction."""
        held = len(self._pending) + sum([len(piece) for piece in self._held])
        return held + (self._exchange.buffered if self._exchange is not None else 0)

    # --- what the client sends ------------------------------------------------------------------------

    def data_came(self, data: bytes, flow_controlled: int, ended: bool, trailers: Sequence[Field] = ()) -> None:
        """DATA, or with `ended` the request's end, and its trailers. `flow_controlled` counts its padding too."""
        self._unacknowledged += flow_controlled
        self.ended = ended
        exchange, next_is = self._exchange, self._next_is
        if exchange is not None and next_is == _HELD:
            self._trailers_came = trailers
            self._hold(exchange, data)
            return
        if exchange is None:
            pass  # it was refused: the rest of its body is dropped
        elif next_is == _BODY:
            exchange.body_came(data, ended, trailers)
        else:
            exchange.tunnel_came(data)
            if ended:
                exchange.client_gone()
                self.end_tunnel()
        if not self._paused:
            self._acknowledge()

    def gone(self) -> None:
        """The client took the stream back, or its connection is gone."""
        exchange, self._exchange = self._exchange, None
        self._leave()
        if exchange is not None:
            exchange.client_gone()

    def spoil(self, fault: Fault) -> None:
        """What the client sent behind its request is not well-formed."""
        if self._exchange is not None:
            self._exchange.refuse(fault)

    def _hold(self, exchange: HttpExchange, data: bytes) -> None:
        """Bounded by the stream's window: what is held is not acknowledged."""
        if not exchange.spoke_early():
            self._held.append(data)

    @property
    def has_unread(self) -> bool:
        return bool(self._held)

    def take_body(self) -> None:
        self._next_is = _BODY
        held, self._held = self._held, []
        if (held or self.ended) and self._exchange is not None:
            self._exchange.body_came(b"".join(held), self.ended, self._trailers_came)
        if not self._paused:
            self._acknowledge()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        size, self._unacknowledged = self._unacknowledged, 0
        if size:
            self._connection.acknowledge(self.id, size)

    # --- the answer -------------------------------------------------------------------------------------

    def inform(self, head: ResponseHead) -> None:
        self._connection.send_headers(self.id, informational_fields(head), last=False)

    def respond(
        self, head: ResponseHead, decision: str, payload: bytes, done: bool, trailers: Sequence[Field] = ()
    ) -> None:
        head_only = self._head is not None and self._head.method == b"HEAD"
        self._answer(response_fields(head, decision, head_only=head_only), payload, done, trailers)

    def respond_more(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        self._pending += payload
        self._last, self._trailers = done, trailers
        self._send()

    def refuse(self, fault: Fault, decision: str) -> None:
        self._exchange = None
        self.tell(refusal(fault, decision), head_only=self._head is not None and self._head.method == b"HEAD")

    def tell(self, told: Refusal, *, head_only: bool) -> None:
        self._answer(refusal_fields(told), b"" if head_only else told.body, True)

    def tell_malformed(self, told: Refusal) -> None:
        """What HTTP/2 calls malformed is an error of the stream; it may be told why before (RFC 9113 §8.1.1)."""
        if self._connection.send_headers(self.id, refusal_fields(told), last=False):
            self._pending += told.body
            self._send()
        self._connection.reset(self.id, ErrorCodes.PROTOCOL_ERROR)
        self._leave()

    def switch(self, head: ResponseHead, decision: str, data: bytes) -> None:
        self._next_is = _TUNNEL
        self._answer(connected_fields(head, decision), data, False)

    def tunnel(self, data: bytes) -> None:
        self._pending += data
        self._send()

    def end_tunnel(self) -> None:
        self._exchange = None
        self._last = True
        self._send()

    def abort(self, reason: Reason) -> None:
        """What was not sent is not sent any more."""
        self._exchange = None
        self._connection.reset(self.id, _CODES.get(reason, ErrorCodes.INTERNAL_ERROR))
        self._leave()

    def _answer(self, fields: list[Field], payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        last = done and not payload and not trailers
        if self._connection.send_headers(self.id, fields, last=last):
            if last:
                self._all_sent()
            elif payload or trailers:
                self.respond_more(payload, done, trailers)

    # --- sending under flow control -------------------------------------------------------------------------

    def _send(self) -> None:
        if self._connection.send(self):
            self._watch_client()

    def send_frame(self, window: int) -> int:
        """Send one DATA frame of `window` bytes at most, if there is anything to send; how many bytes went out, or -1
        when that was the last of them."""
        pending = self._pending
        size = min(len(pending), max(window, 0), MAX_FRAME_BYTES)
        last = self._last and size == len(pending)
        if not size and not last:
            return 0
        data = bytes(pending[:size])
        del pending[:size]
        if last and self._trailers:
            sent = self._send_with_trailers(data)
        else:
            sent = self._connection.send_data(self.id, data, last=last)
        if not sent:
            return -1
        if last:
            self._all_sent()
            return -1
        self._progress(size)
        return size

    def _send_with_trailers(self, data: bytes) -> bool:
        """The last of an answer, and what ends the stream behind it (RFC 9113 §8.1)."""
        if data and not self._connection.send_data(self.id, data, last=False):
            return False
        return self._connection.send_headers(self.id, trailer_fields(self._trailers), last=True)

    @property
    def has_pending(self) -> bool:
        return bool(self._pending) or self._last

    def _watch_client(self) -> None:
        """Something could not be sent at once: hold the upstream back when it is too much, and time the client."""
        if not self._pending:
            return
        if self._stalled_at == NEVER:
            self._restart_timer()
        if not self._full and len(self._pending) >= self._connection.services.http2.buffer:
            self._full = True
            if self._exchange is not None:
                self._exchange.client_full()

    def _progress(self, size: int) -> None:
        self._mark -= size
        if not self._pending:
            self._stalled_at = NEVER
        elif self._mark <= 0:
            self._restart_timer()
        if self._full and len(self._pending) < self._connection.services.http2.buffer // 2:
            self._full = False
            if self._exchange is not None:
                self._exchange.client_drained()

    def _restart_timer(self) -> None:
        services = self._connection.services
        self._stalled_at = services.clock.monotonic() + services.settings.body_timeout
        self._mark = min(len(self._pending), _LEAST_PROGRESS)

    # --- ends --------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """End what is late at `now` (monotonic seconds)."""
        exchange = self._exchange
        if self._stalled_at <= now:
            self._connection.provoked()
            if exchange is not None:
                exchange.refuse(Fault(Reason.REQUEST_TIMEOUT))
            else:
                self.abort(Reason.REQUEST_TIMEOUT)
        elif exchange is not None and exchange.due <= now:
            exchange.timed_out()

    def _all_sent(self) -> None:
        """The answer's last byte is out."""
        exchange, self._exchange = self._exchange, None
        self._leave()
        if not self.ended:
            self._connection.answered_early(self.id)
        if exchange is not None:
            exchange.answered()

    def _leave(self) -> None:
        self._stalled_at = NEVER
        self._pending.clear()
        self._last = False
        self._held = []
        self._acknowledge()  # to the connection's window: others go on
        self._connection.left(self)

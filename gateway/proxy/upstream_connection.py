"""One connection to an upstream: lent to one exchange at a time, it writes what it is given and reads the answer.

It goes back to its address only when both messages on it ended where their framing said, with nothing left over;
anything else closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, cast

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import peer_certificate
from gateway.proxy.headers import Field
from gateway.proxy.http1 import HEAD_END, UNTIL_CLOSE, Body, Piece, ResponseHead, ResponseReader, body_of
from gateway.upstreams.budget import Failure
from gateway.upstreams.endpoint import Endpoint, Lane
from policies.upstreams import Destination

WRITE_HIGH_WATER = 256 << 10
MAX_INFORMATIONAL = 16


class Sink(Protocol):
    """The exchange that an upstream's connection works for. After `failed`, `broken` or a call with `done` the
    connection has forgotten it."""

    @property
    def source(self) -> tuple[str, int] | None:
        """Where the client's connection comes from, if that is known."""
        ...

    def connected(self, upstream: UpstreamConnection) -> None:
        """A connection is lent, and the request can be written."""

    def failed(self, fault: Fault, failure: Failure, at: Endpoint | None) -> None:
        """No answer came from this address; None when none was chosen."""

    def informational(self, head: ResponseHead) -> None: ...

    def response(self, head: ResponseHead, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None: ...

    def response_data(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None: ...

    def upgraded(self, head: ResponseHead, data: bytes) -> None:
        """The upstream answered 101; from now on bytes come by `tunnelled`. Raises `Fault` to refuse that."""

    def tunnelled(self, data: bytes) -> None: ...

    def broken(self, fault: Fault) -> None:
        """The answer, or the tunnel, ended before its end."""

    def upstream_full(self) -> None:
        """Stop writing until `upstream_drained`."""

    def upstream_drained(self) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream; implements `gateway.upstreams.pool.Pooled`. `request_done` is set by the exchange
    once it has written all of its request."""

    __slots__ = (
        "_answering",
        "_body",
        "_held",
        "_informational",
        "_keep",
        "_method",
        "_reader",
        "_reading_paused",
        "_shows",
        "_sink",
        "_transport",
        "_tunnel",
        "endpoint",
        "idle_since",
        "lane",
        "opened_at",
        "request_done",
        "used",
    )

    def __init__(self, endpoint: Endpoint, lane: Lane, reader: ResponseReader, *, shows: bool = True) -> None:
        """`shows`: what comes of it is held for or against the address."""
        self.endpoint = endpoint
        self.lane = lane
        self._shows = shows
        self._reader = reader
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._tunnel = False
        self._reading_paused = False
        self.opened_at = self.idle_since = 0.0
        self.used = False
        self._reset(b"")

    def _reset(self, method: bytes) -> None:
        self._method = method
        self._held = b""
        self._body: Body | None = None
        self._keep = False
        self._informational = 0
        self._answering = False  # a byte of an answer came
        self.request_done = False

    # --- what the exchange calls ------------------------------------------------------------------

    def lend(self, method: bytes, sink: Sink) -> None:
        """Work for `sink`, whose request has this method."""
        self._reset(method)
        self._sink = sink
        self.endpoint.active += 1

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        # An answer's last bytes may fill the client's buffer when this connection is the pool's again: the next that it
        # is lent to must be read.
        if self._transport is not None and self._sink is not None and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection and whatever is under way on it."""
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def late(self) -> None:
        """The exchange waits no longer for an answer."""
        self.endpoint.late()

    def _let_go(self) -> Sink | None:
        """Forget the exchange; the one that was served."""
        sink = self._sink
        if sink is not None:
            self._sink = None
            self.endpoint.active -= 1
        return sink

    @property
    def certificate(self) -> bytes | None:
        """What the upstream proved (DER)."""
        return peer_certificate(self._transport)

    @property
    def leads_to(self) -> Destination:
        return self.endpoint.destination

    @property
    def buffered(self) -> int:
        """Bytes that wait to be written, or of a head that is not whole yet."""
        return len(self._held) + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # --- what the event loop calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast(asyncio.Transport, transport)  # uvloop's are not of the class
        stream.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.endpoint.opened(self)

    def data_received(self, data: bytes) -> None:
        self._answering = True
        if self._sink is None:
            self.abort()  # an upstream that speaks unasked is out of step
            return
        try:
            self._read(self._sink, data)
        except Fault as fault:
            self._break(fault)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.endpoint.closed(self)
        if self._sink is None:
            return
        if self._body is not None and error is None and not self._tunnel and self._body.end():
            sink = self._sink
            self._let_go()
            sink.response_data(b"", True)
        else:
            self._break(Fault(Reason.UPSTREAM_UNREACHABLE, "the upstream closed the connection"))

    def pause_writing(self) -> None:
        if self._sink is not None:
            self._sink.upstream_full()

    def resume_writing(self) -> None:
        if self._sink is not None:
            self._sink.upstream_drained()

    # --- reading a response -------------------------------------------------------------------------

    def _read(self, sink: Sink, data: bytes) -> None:
        if self._tunnel:
            sink.tunnelled(data)
        elif self._body is not None:
            piece = self._body.feed(data)
            if piece.done:
                self._release(piece.rest)
            sink.response_data(piece.payload, piece.done, piece.trailers)
        else:
            self._read_head(sink, self._held + data if self._held else data)

    def _read_head(self, sink: Sink, data: bytes) -> None:
        while True:
            end = data.find(HEAD_END) + 4
            if end < 4:
                self._reader.check_partial(data)
                self._held = data
                return
            head, data = self._reader.read(data[:end], self._method), data[end:]
            if head.status >= 200 or head.status == 101:
                break
            self._inform(sink, head)
            if self._sink is not sink:
                return
        self._held = b""
        if head.status == 101:
            sink.upgraded(head, data)
            self._tunnel = True
        else:
            self._begin_body(sink, head, data)

    def _inform(self, sink: Sink, head: ResponseHead) -> None:
        self._informational += 1
        if self._informational > MAX_INFORMATIONAL:
            raise Fault(Reason.UPSTREAM_INVALID, "too many informational responses")
        sink.informational(head)

    def _begin_body(self, sink: Sink, head: ResponseHead, data: bytes) -> None:
        if self._shows:
            self.endpoint.answered(head.status)
        self._keep = head.keep_alive and head.length != UNTIL_CLOSE
        self._body = body = body_of(head.length, Reason.UPSTREAM_INVALID, head.nominated)
        piece = Piece(b"", data, True) if body.done else body.feed(data)
        if piece.done:
            self._release(piece.rest)
        sink.response(head, piece.payload, piece.done, piece.trailers)

    def _release(self, rest: bytes) -> None:
        """The response is whole: lend the connection to the next, or close it."""
        self._let_go()
        if not self._keep or rest or not self.request_done or not self.alive:
            self.abort()
            return
        self.resume_reading()
        self.endpoint.give_back(self)

    def _break(self, fault: Fault) -> None:
        """The upstream broke off. That an idle connection had died, or that a tunnel ends, says nothing of its
        health."""
        if self._shows and not self._tunnel and (self._answering or not self.used):
            self.endpoint.failed()
        self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        sink = self._let_go()
        self.abort()
        if sink is None:
            return
        if self._body is not None or self._tunnel:
            sink.broken(fault)
        else:
            stale = self.used and not self._answering
            sink.failed(fault, Failure.STALE if stale else Failure.UNANSWERED, self.endpoint)

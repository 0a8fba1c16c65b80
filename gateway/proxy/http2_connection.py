"""One client's HTTP/2 connection (RFC 9113): h2 keeps the protocol's state, each stream is an exchange of its own.

Laws held here:
- every frame is counted before h2 sees it (`gateway.proxy.http2_budget`); who overruns a budget is told
  ENHANCE_YOUR_CALM, and the connection ends;
- a stream is cut alone, the connection with its identity;
- streams share the connection in turns, a frame at a time;
- a drain loses no request: the client is told to open no more, what it opened meanwhile is served, and the connection
  ends when nothing is under way (§6.8).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
from collections.abc import Callable
from typing import Any

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import DenialOfServiceError, ProtocolError, TooManyStreamsError
from hpack import HPACKError

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.connection import ClientConnection
from gateway.proxy.exchange import NEVER
from gateway.proxy.headers import Field
from gateway.proxy.http1 import RequestHead
from gateway.proxy.http2 import as_http1, trailers_of
from gateway.proxy.http2_budget import Budget, Flood, Overrun
from gateway.proxy.http2_protocol import ALL_STREAMS, ServerProtocol, goaway
from gateway.proxy.http2_stream import Http2Stream
from gateway.proxy.refusal import refusal
from gateway.proxy.services import ConnectionServices

_FLUSH_BYTES = 64 << 10
_DRAINED = b"drained\0"  # what our PING says: 8 bytes
_LOG = logging.getLogger(__name__)


class Http2Connection(ClientConnection):
    """One `Http2Stream` per request."""

    protocol = "HTTP/2.0"

    __slots__ = (
        "_block_due",
        "_budget",
        "_draining",
        "_flushing",
        "_greeted",
        "_h2",
        "_last_stream",
        "_lingering",
        "_ready",
        "_streams",
        "_unread",
    )

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection]) -> None:
        super().__init__(services, siblings)
        self._streams: dict[int, Http2Stream] = {}
        self._unread: dict[int, tuple[float, int]] = {}  # answered early: until when, and bytes that came since
        self._ready: dict[Http2Stream, None] = {}  # those that have something to send and may, in turns
        self._h2 = ServerProtocol()
        self._budget = Budget(
            services.http2, 2 * services.settings.head_bytes, self._streams, services.clock.monotonic()
        )
        self._block_due = NEVER  # a header block that has begun must end by then
        self._greeted = False  # the client's preface and SETTINGS came
        self._flushing = False  # what h2 has to say will be written
        self._lingering = -1  # bytes that are still read behind a GOAWAY; negative before it
        self._draining = False  # the client was told to open no more streams
        self._last_stream = ALL_STREAMS  # those above are refused

    # --- what the event loop calls --------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._lingering >= 0:
            self._drop(data)
            return
        if self._flushing:
            self._flush()  # a GOAWAY makes h2 forget what was not fetched
        self._flushing = True
        try:
            self._budget.read(data, self.services.clock.monotonic())
            for event in self._h2.receive_data(data):
                handle = _HANDLERS.get(type(event))
                if handle is not None:
                    handle(self, event)
        except Overrun as overrun:
            self._calm(overrun.flood)
        except TooManyStreamsError:
            self._calm(Flood.STREAMS)
        except DenialOfServiceError:
            self._calm(Flood.HEADERS)
        except ProtocolError as error:
            self._wrong(error)
        self._flush()
        self._time_block()

    def pause_writing(self) -> None:
        """Read no more requests from a client that does not read its answers."""
        self._full_until = self.services.clock.monotonic() + self.services.settings.body_timeout
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full_until = NEVER
        if self._transport is not None:
            self._transport.resume_reading()
        self._send_ready()

    def _welcomed(self) -> None:
        self._h2.greet(self.services.settings.limits, self.services.http2)
        self._flush()
        self._idle()

    @property
    def under_way(self) -> int:
        return len(self._streams)

    @property
    def buffered(self) -> int:
        return super().buffered + sum([stream.buffered for stream in self._streams.values()])

    def _turned_away(self, fault: Fault) -> None:
        self._h2.initiate_connection()
        is_stranger = fault.reason in {Reason.CLIENT_CERTIFICATE_REQUIRED, Reason.CLIENT_CERTIFICATE_INVALID}
        code = ErrorCodes.INADEQUATE_SECURITY if is_stranger else ErrorCodes.ENHANCE_YOUR_CALM
        self._end_with(code, fault.reason.code)

    def _lost(self) -> None:
        for stream in list(self._streams.values()):
            stream.gone()

    # --- what h2 tells ----------------------------------------------------------------------------------

    def _requested(self, event: RequestReceived) -> None:
        number, ended = event.stream_id, event.stream_ended is not None
        if number > self._last_stream:
            self.reset(number, ErrorCodes.REFUSED_STREAM)
            return
        stream = self._streams[number] = Http2Stream(self, number, ended=ended)
        self.due = NEVER
        head: RequestHead | None = None
        try:
            self._check_room()
            head = self._read(event.headers or [], ended)
            exchange = self._open(stream, head)
        except Fault as fault:
            self._refuse_unasked(stream, fault, head)
            return
        stream.begin(exchange, head)

    def _read(self, fields: list[Any], ended: bool) -> RequestHead:
        key = base64.b64encode(secrets.token_bytes(16)) if (b":method", b"CONNECT") in fields else b""
        return self.services.requests.read(as_http1(fields, ended=ended, websocket_key=key))

    def _check_room(self) -> None:
        settings = self.services.http2
        if self.services.registry.exchanges_of(self.caller.peer.id) > settings.streams_per_identity:
            raise Fault(Reason.OVERLOADED, "too many streams of this identity")
        if len(self._streams) > settings.undecided:
            undecided = sum(1 for stream in self._streams.values() if stream.is_undecided)
            if undecided >= settings.undecided:
                raise Fault(Reason.OVERLOADED, "too many streams wait for a decision")

    def _refuse_unasked(self, stream: Http2Stream, fault: Fault, head: RequestHead | None) -> None:
        method, target = (head.method, head.target) if head is not None else (b"", b"")
        is_malformed = fault.reason is Reason.REQUEST_MALFORMED
        if is_malformed:
            self.provoked()

        def answer(told: Fault, decision: str) -> None:
            if self._streams.get(stream.id) is not stream:
                return
            if is_malformed:
                stream.tell_malformed(refusal(told, decision))
            else:
                stream.tell(refusal(told, decision), head_only=method == b"HEAD")

        self._record_refusal(fault, method, target, answer)

    def _data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        size = event.flow_controlled_length or 0
        if stream is not None:
            stream.data_came(event.data or b"", size, event.stream_ended is not None)
        elif event.stream_id in self._unread:
            self._drop_data(event.stream_id, size, event.stream_ended is not None)
        elif size:
            self.acknowledge(event.stream_id, size)

    def _trailers(self, event: TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._forget_unread(event.stream_id)
            return
        try:
            trailers = trailers_of(event.headers or [])
        except Fault as fault:
            stream.spoil(fault)
            return
        stream.data_came(b"", 0, True, trailers)

    def _reset_by_client(self, event: StreamReset) -> None:
        if not event.remote_reset:
            self.provoked()
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.gone()
        else:
            self._forget_unread(event.stream_id)

    def _window_updated(self, event: WindowUpdated) -> None:
        if event.stream_id:
            stream = self._streams.get(event.stream_id)
            if stream is not None and stream.has_pending:
                self._ready[stream] = None
        else:
            self._all_ready()
        self._send_ready()

    def _settings_changed(self, event: RemoteSettingsChanged) -> None:
        if not self._greeted:
            self._greeted = True
            self._idle()
        self._all_ready()
        self._send_ready()

    def _terminated(self, event: ConnectionTerminated) -> None:
        """The client opens no more streams; those that it opened go on."""
        self._draining = True
        self._last_stream = self._h2.highest_inbound_stream_id
        self._close_if_done()

    def _pinged_back(self, event: PingAckReceived) -> None:
        """The client has read that it should open no more streams: what it opened before is here."""
        if self._draining and event.ping_data == _DRAINED and self._last_stream == ALL_STREAMS:
            self._last_stream = self._h2.highest_inbound_stream_id
            self._say_goaway(self._last_stream)
            self._close_if_done()

    # --- what streams need ------------------------------------------------------------------------------

    def send_headers(self, number: int, fields: list[Field], *, last: bool) -> bool:
        """Whether the stream is still there to be answered."""
        try:
            self._h2.send_headers(number, fields, end_stream=last)
        except ProtocolError:  # the client took the stream back, which h2 knows before we do
            return False
        self._flush_soon()
        return True

    def send_data(self, number: int, data: bytes, *, last: bool) -> bool:
        """Whether the stream is still there to be answered. `data` fits its window."""
        try:
            self._h2.send_data(number, data, end_stream=last)
        except ProtocolError:
            return False
        self._budget.sent_data(1)
        return True

    def send(self, stream: Http2Stream) -> bool:
        """Send what may be sent, this stream's too; whether some of it has to wait."""
        self._ready[stream] = None
        self._send_ready()
        return stream.has_pending

    def acknowledge(self, number: int, size: int) -> None:
        """Open the windows again by `size` bytes."""
        try:
            self._h2.acknowledge_received_data(size, number)
        except ProtocolError:  # the connection is over
            return
        self._flush_soon()

    def reset(self, number: int, code: ErrorCodes) -> None:
        try:
            self._h2.reset_stream(number, code)
        except ProtocolError:
            return
        self._flush_soon()

    def answered_early(self, number: int) -> None:
        """The answer went out before its request's end. The client has a while to read it and to end, and its window
        stays shut; then it is told that nobody reads on (RFC 9113 §8.1). Told at once, some clients lose the answer."""
        self._unread[number] = (self.services.clock.monotonic() + self.services.settings.linger_timeout, 0)

    def _drop_data(self, number: int, size: int, ended: bool) -> None:
        until, before = self._unread[number]
        self._unread[number] = (until, before + size)
        if ended:
            self._forget_unread(number)

    def _forget_unread(self, number: int) -> None:
        """Nothing more comes of this request: what came counts against the connection's window no longer."""
        _, size = self._unread.pop(number, (0.0, 0))
        if size:
            self.acknowledge(number, size)

    def _end_unread(self, now: float) -> None:
        """Tell those who still send that nobody reads on."""
        for number in [each for each, (until, _) in self._unread.items() if until <= now]:
            self.reset(number, ErrorCodes.NO_ERROR)
            self._forget_unread(number)

    def provoked(self) -> None:
        """A stream was reset because of what the client did, or did not. Raises `Overrun`."""
        self._budget.reset(self.services.clock.monotonic())

    def left(self, stream: Http2Stream) -> None:
        self._ready.pop(stream, None)
        if self._streams.pop(stream.id, None) is not None and not self._streams:
            self._idle()
            self._close_if_done()

    def _all_ready(self) -> None:
        for stream in self._streams.values():
            if stream.has_pending:
                self._ready[stream] = None

    def _send_ready(self) -> None:
        """A frame for each stream in turn, until windows or the transport are full."""
        unwritten = 0
        while self._ready and self._full_until == NEVER:
            stream = next(iter(self._ready))
            del self._ready[stream]
            try:
                window = self._h2.local_flow_control_window(stream.id)
            except ProtocolError:
                continue
            sent = stream.send_frame(window)
            if sent > 0 and stream.has_pending:
                self._ready[stream] = None
            unwritten += max(sent, 0)
            if unwritten >= _FLUSH_BYTES:
                self._flush()
                unwritten = 0
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Once for all that is said in this turn of the event loop."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        data = self._h2.data_to_send()
        if data:
            self.write(data)

    # --- the listener's sweep, and ends ---------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        if self._full_until <= now:
            self.abort(Reason.REQUEST_TIMEOUT)
            return
        if self.due <= now:
            self._late()
            return
        if self._block_due <= now:
            self._calm(Flood.CONTINUATIONS)
            return
        try:
            for stream in list(self._streams.values()):
                stream.sweep(now)
            if self._unread:
                self._end_unread(now)
        except Overrun as overrun:
            self._calm(overrun.flood)

    def close_if_idle(self) -> None:
        if self._lingering >= 0 or self._draining:
            return
        self._draining = True
        self._say_goaway(ALL_STREAMS)
        self._h2.ping(_DRAINED)
        self._flush_soon()
        if not self._streams:
            self._idle()

    def _late(self) -> None:
        """Nothing came for too long."""
        if self._lingering >= 0:
            self.close()
        elif self._draining or not self._greeted:
            self._end_with(ErrorCodes.NO_ERROR, "")
        else:
            self.close_if_idle()

    def _idle(self) -> None:
        """No stream is open: wait for the preface, for the answer to a drain's PING, or for a request."""
        settings = self.services.settings
        if self._lingering < 0:
            settled = settings.linger_timeout if self._draining else settings.idle_timeout
            self.due = self.services.clock.monotonic() + (settled if self._greeted else settings.first_byte_timeout)

    def _time_block(self) -> None:
        """A header block that has begun must end in time: meanwhile no other stream's frames can come."""
        if not self._budget.in_header_block:
            self._block_due = NEVER
        elif self._block_due == NEVER:
            self._block_due = self.services.clock.monotonic() + self.services.settings.header_timeout

    def _close_if_done(self) -> None:
        """Draining ends when nothing is under way, and nothing can be on its way."""
        if self._draining and not self._streams and self._lingering < 0 and self._last_stream != ALL_STREAMS:
            self._flush()
            self.close()

    def _say_goaway(self, last: int) -> None:
        self._flush()
        self.write(goaway(last))

    def _calm(self, flood: Flood) -> None:
        self.services.metrics.flooded(flood)
        _LOG.warning("%s overran its budget of %s: its connection ends", self.caller.text, flood)
        code = ErrorCodes.FRAME_SIZE_ERROR if flood is Flood.FRAME else ErrorCodes.ENHANCE_YOUR_CALM
        self._end_with(code, flood)

    def _wrong(self, error: ProtocolError) -> None:
        """h2 has said GOAWAY, but for what it does not tell apart: fields that cannot be decoded (RFC 9113 §4.3)."""
        self.services.metrics.refused_connection(Reason.REQUEST_MALFORMED)
        _LOG.debug("%s does not speak HTTP/2: %s", self.caller.text, error)
        if isinstance(error.__cause__, HPACKError):
            self._end_with(ErrorCodes.COMPRESSION_ERROR, "")
        else:
            self._linger()

    def _end_with(self, code: ErrorCodes, why: str) -> None:
        self._h2.clear_outbound_data_buffer()
        with contextlib.suppress(ProtocolError):
            self._h2.close_connection(code, additional_data=why.encode("ascii"))
        self._linger()

    def _linger(self) -> None:
        """End every stream, and read on for a while: closing with unread bytes would reset the connection, and the
        client might lose the GOAWAY."""
        self._lingering = self.services.settings.linger_bytes
        self._block_due = NEVER
        self._flush()
        self._lost()
        self.due = self.services.clock.monotonic() + self.services.settings.linger_timeout

    def _drop(self, data: bytes) -> None:
        self._lingering -= len(data)
        if self._lingering <= 0:
            self.close()


_HANDLERS: dict[type[Event], Callable[[Http2Connection, Any], None]] = {
    RequestReceived: Http2Connection._requested,
    DataReceived: Http2Connection._data,
    TrailersReceived: Http2Connection._trailers,
    StreamReset: Http2Connection._reset_by_client,
    WindowUpdated: Http2Connection._window_updated,
    RemoteSettingsChanged: Http2Connection._settings_changed,
    ConnectionTerminated: Http2Connection._terminated,
    PingAckReceived: Http2Connection._pinged_back,
}

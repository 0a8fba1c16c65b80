"""One end of a tunnel at work: streams that can be written, read and ended over one connection.

Laws held here:
- nothing is written to a connection that does not take it: what waits, waits in its stream, and streams that wait are
  served in turn, `QUANTUM` bytes each, so that none starves another; nothing is written past the row;
- what was written to a stream before its turn came leaves in one frame; while the other side bears no more small ones,
  streams with little to send wait a moment longer (`HOLD`), in which it becomes more;
- what a stream holds is bounded by the credit that its reader gives back only for what was passed on;
- a connection that takes nothing while answers pile up for it is aborted (`MOST_BUFFERED`): neither side stops reading,
  for two that wait for each other would wait for ever;
- when the connection is gone, every stream of it is over, and each user is told once.

The protocol is `foundation.wire.tunnel`'s. Whoever has the connection (a node's agent, a gateway's listener, a relay)
calls `made`, `received`, `blocked`, `unblocked` and `lost`, as asyncio calls a protocol.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.streams import StreamRefusal, reason_of
from foundation.wire.tunnel import MAX_DATA, STREAMS, TunnelState, datagram_cost
from foundation.wire.tunnel_budget import FRAMES_OF_GATEWAY, FRAMES_OF_NODE, WORTHWHILE
from foundation.wire.tunnel_events import (
    CreditReceived,
    DatagramReceived,
    DataReceived,
    Draining,
    Event,
    HelloReceived,
    Pinged,
    Ponged,
    StreamAccepted,
    StreamEnded,
    StreamRefused,
    StreamRequested,
    StreamReset,
)

Bytes = bytes | memoryview  # parts of what was written are not copied before they leave
JOINED = 4 << 10
"""What is as short as this waits until the end of the event loop's turn, and leaves in one frame with what came
behind it."""
QUANTUM = 32 << 10
ALONE = 128 << 10
"""What a stream sends in its turn when no other waits."""
WRITE_HIGH_WATER = 256 << 10
WRITE_LOW_WATER = 64 << 10
WRITE_AT_ONCE = 64 << 10
MOST_BUFFERED = 4 << 20
HOLD = 0.005
"""Seconds, after which `HELD_AT_ONCE` of those that are held are looked at: together more than a node may send."""
HELD_AT_ONCE = 64


class StreamUser(Protocol):
    """Who uses one stream. After `refused` and `over` nothing more is told."""

    def accepted(self, document: bytes) -> None:
        """The other side took the stream that was asked for."""

    def refused(self, document: bytes) -> None:
        """The other side did not."""

    def received(self, data: bytes) -> None:
        """A piece came. Say `Stream.consumed` once it is passed on."""

    def datagram_received(self, data: bytes) -> None:
        """A datagram came. Its room is given back already: whoever cannot take it drops it."""

    def sent(self, size: int) -> None:
        """So many of the bytes that were written have left this side."""

    def ended(self) -> None:
        """The other side sends no more."""

    def over(self, reason: Reason) -> None:
        """It was reset, or its tunnel is gone."""


class TunnelUser(Protocol):
    """Who has one tunnel."""

    def greeted(self, document: bytes) -> None:
        """The other side's HELLO. A `Fault` of the user ends the tunnel."""

    def requested(self, stream: Stream, document: bytes) -> None:
        """The other side wants a stream: `accept` or `refuse` it, now or later; set `stream.user` until then, if you
        want to know that it is over. A `Fault` of the user ends the tunnel."""

    def draining(self) -> None:
        """The other side takes no new streams any more."""


class Stream:
    """One stream of one tunnel. `backlog` is how many written bytes have not left yet."""

    __slots__ = ("_ended", "_queue", "_tunnel", "backlog", "is_held", "number", "user", "waits")

    def __init__(self, tunnel: Tunnel, number: int, user: StreamUser) -> None:
        self._tunnel = tunnel
        self._queue: deque[Bytes] = deque()
        self._ended = False  # once all that waits has left
        self.number = number
        self.user = user
        self.backlog = 0
        self.waits = False  # in the tunnel's row of those that can send
        self.is_held = False  # and among those that wait for more; what comes meanwhile may put it into the row again

    @property
    def is_open(self) -> bool:
        return not self._tunnel.is_lost and self._tunnel.state.is_open(self.number)

    def accept(self, user: StreamUser, document: bytes) -> None:
        """Take the stream that the other side asked for."""
        self.user = user
        self._tunnel.send(self._tunnel.state.accept(self.number, document))
        self.go()

    def refuse(self, document: bytes) -> None:
        """Turn it away."""
        self._tunnel.send(self._tunnel.state.refuse(self.number, document))
        self._tunnel.forget_if_over(self)

    def write(self, data: bytes) -> None:
        """Send `data`, now or when there is room; the user is told by `sent`, perhaps before this returns. Behind the
        end of the stream it is dropped."""
        if not self._append(data):
            return
        size = len(data)
        if JOINED < size <= QUANTUM and self.backlog == size and self.next_size(size) == size and self._tunnel.is_idle:
            self.pump(size)
        else:
            self._tunnel.wait(self)

    def write_in_turn(self, data: bytes) -> None:
        """The same at the end of the event loop's turn, when whoever else has something to send has said so: a source
        that could give all that the connection takes would leave nothing to others."""
        if self._append(data):
            self._tunnel.wait(self)

    def _append(self, data: bytes) -> bool:
        if not data or self._ended or not self.is_open:
            return False
        self._queue.append(data)
        self.backlog += len(data)
        return True

    def send_datagram(self, data: bytes) -> bool:
        """Send one datagram; whether there was room."""
        if self._tunnel.is_blocked or not self.is_open or not self._tunnel.bears(len(data)):
            return False
        frame = self._tunnel.state.datagram(self.number, data)
        self._tunnel.send(frame)
        return bool(frame)

    def consumed(self, size: int) -> None:
        """So much of what came was passed on."""
        self._tunnel.send(self._tunnel.state.consumed(self.number, size))

    def end(self) -> None:
        """Send no more, once all that was written has left."""
        self._ended = True
        self._end_behind_the_last()

    def reset(self, reason: Reason) -> None:
        """End it both ways, now. The user is not told."""
        self._tunnel.send(self._tunnel.state.reset(self.number, reason))
        self._queue.clear()
        self.backlog = 0
        self._tunnel.forget(self)

    def go(self) -> None:
        """Send what was written before the stream was accepted."""
        if self._queue:
            self._tunnel.wait(self)
        elif self._ended:
            self._end_behind_the_last()

    def next_size(self, most: int) -> int:
        """How much of what waits can leave now, `most` at most."""
        return min(most, self._tunnel.state.credit(self.number), self.backlog)

    def pump(self, gone: int) -> None:
        """Send so much of what waits, at most `next_size`, in as few frames as can be."""
        left = gone
        while left:
            size = min(left, MAX_DATA)
            self._tunnel.send(self._tunnel.state.data(self.number, size))
            self._send_pieces(size)
            left -= size
        self.backlog -= gone
        if self._ended:
            self._end_behind_the_last()
        self.user.sent(gone)

    def _send_pieces(self, size: int) -> None:
        while size:
            piece = self._queue.popleft()
            if len(piece) > size:
                whole = memoryview(piece)
                self._queue.appendleft(whole[size:])
                piece = whole[:size]
            self._tunnel.send(piece)
            size -= len(piece)

    def _end_behind_the_last(self) -> None:
        if self._queue or not self._tunnel.state.is_accepted(self.number):
            return
        self._tunnel.send(self._tunnel.state.end(self.number))
        self._tunnel.forget_if_over(self)


class Tunnel:
    """One end. `heard_at` is when the other side was last heard (monotonic seconds)."""

    def __init__(
        self,
        user: TunnelUser,
        clock: Clock,
        *,
        dials: bool,
        most_streams: int = STREAMS,
        of_gateways: bool = False,
    ) -> None:
        """`most_streams` bounds those of either side: more are refused. `of_gateways`: both sides are; otherwise who
        dials is a node."""
        self.state = TunnelState(
            dials=dials,
            most_streams=most_streams,
            frames_per_second=FRAMES_OF_GATEWAY if dials or of_gateways else FRAMES_OF_NODE,
            own_frames_per_second=FRAMES_OF_NODE if dials and not of_gateways else FRAMES_OF_GATEWAY,
            now=clock.monotonic(),
        )
        self.is_blocked = False
        self.is_lost = False
        self._most_streams = most_streams
        self.heard_at = clock.monotonic()
        self._user = user
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()
        self._held: deque[Stream] = deque()  # with less to send than the other side bears for now
        self._out: list[Bytes] = []
        self._out_size = 0
        self._loop = asyncio.get_running_loop()

    # --- what the connection's owner calls ---------------------------------------------------------------

    def made(self, transport: asyncio.Transport) -> None:
        """The connection stands."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER, low=WRITE_LOW_WATER)
        self._flush()

    def received(self, data: bytes) -> None:
        """Take what came. Raises `Fault(TUNNEL_MALFORMED | TUNNEL_FLOODED)`, or the user's: then the connection has to
        be aborted."""
        self.heard_at = self._clock.monotonic()
        for event in self.state.receive(data, self.heard_at):
            if self.is_lost:
                return
            self._take(event)

    def blocked(self) -> None:
        """The connection takes no more for now."""
        self.is_blocked = True

    def unblocked(self) -> None:
        """It does again."""
        self.is_blocked = False
        self._serve()

    def lost(self, reason: Reason = Reason.TUNNEL_LOST) -> None:
        """The connection is gone, and with it every stream."""
        self.is_lost = True
        self._transport = None
        streams, self._streams = self._streams, {}
        self._waiting.clear()
        self._held.clear()
        self._out.clear()
        self._out_size = 0
        for stream in streams.values():
            stream.user.over(reason)

    # --- streams ------------------------------------------------------------------------------------------

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(self._streams.values())

    @property
    def buffered(self) -> int:
        """Bytes that wait here."""
        out = self._out_size + sum(stream.backlog for stream in self._streams.values())
        return out + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits, and the connection takes bytes."""
        return not self._waiting and not self.is_blocked

    def bears(self, size: int) -> bool:
        """Whether the other side bears another frame with so many bytes now."""
        return size >= WORTHWHILE or self.state.allows(self._clock.monotonic())

    def open(self, user: StreamUser, document: bytes) -> Stream:
        """Ask the other side for a stream. Raises `Fault(STREAM_LIMIT | TUNNEL_LOST)`."""
        if self.is_lost:
            raise Fault(Reason.TUNNEL_LOST)
        if not self.state.allows(self._clock.monotonic(), needed=True):
            raise Fault(Reason.STREAM_LIMIT, "more streams in a short time than the other side bears")
        number, frame = self.state.open(document)
        stream = self._streams[number] = Stream(self, number, user)
        self.send(frame)
        return stream

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)

    def forget_if_over(self, stream: Stream) -> None:
        if not stream.is_open:
            self.forget(stream)

    def wait(self, stream: Stream) -> None:
        """`stream` has something to send: in its turn, when the connection takes it and it has credit."""
        is_first = not self._waiting
        if self._queue_up(stream) and is_first and not self.is_blocked:
            self._loop.call_soon(self._serve)

    def _queue_up(self, stream: Stream) -> bool:
        """Whether `stream` was not in the row, and is now."""
        if stream.waits or not self.state.credit(stream.number):
            return False
        stream.waits = True
        self._waiting.append(stream)
        return True

    def _serve(self) -> None:
        """Let those that wait send in turn, until the connection takes no more."""
        while self._waiting and not self.is_blocked:
            stream = self._waiting.popleft()
            size = stream.next_size(QUANTUM if self._waiting else ALONE)
            stream.waits = False
            if 0 < size < WORTHWHILE and not self.bears(size):
                self._hold(stream)
            elif size:
                stream.pump(size)
                if stream.backlog:
                    self._queue_up(stream)
        self._flush()

    def _hold(self, stream: Stream) -> None:
        if stream.is_held:
            return
        if not self._held:
            self._loop.call_later(HOLD, self._release)
        stream.is_held = True
        self._held.append(stream)

    def _release(self) -> None:
        """Those that are held longest are at the end of the row again."""
        released = [self._held.popleft() for _ in range(min(HELD_AT_ONCE, len(self._held)))]
        if self._held:
            self._loop.call_later(HOLD, self._release)
        for stream in released:
            stream.is_held = False
            if stream.backlog:
                self._queue_up(stream)
        self._serve()

    # --- bytes ----------------------------------------------------------------------------------------------

    def hello(self, document: bytes) -> None:
        self.send(self.state.hello(document))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.send(self.state.ping(0))

    def drain(self) -> None:
        """Take no new streams any more."""
        self.send(self.state.drain())

    def send(self, frame: Bytes) -> None:
        """Frames go out together at the end of the event loop's turn."""
        if not frame or self.is_lost:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)
        self._out_size += len(frame)
        if self._out_size >= WRITE_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        out, transport = self._out, self._transport
        if not out or transport is None:
            return
        self._out, self._out_size = [], 0
        transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self.is_blocked and transport.get_write_buffer_size() > MOST_BUFFERED:
            transport.abort()

    # --- events ---------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event:
            case DataReceived(number, data):
                stream = self._streams.get(number)
                if stream is not None:
                    stream.user.received(data)
            case CreditReceived(number):
                stream = self._streams.get(number)
                if stream is not None and stream.backlog:
                    self.wait(stream)
            case HelloReceived(document):
                self._user.greeted(document)
            case StreamRequested(number, document):
                self._requested(number, document)
            case Pinged(number):
                self.send(self.state.pong(number))
            case Ponged():
                pass
            case Draining():
                self._user.draining()
            case _:
                self._take_of_stream(event)

    def _requested(self, number: int, document: bytes) -> None:
        if self.state.requested_count > self._most_streams:
            self.send(self.state.refuse(number, StreamRefusal(Reason.STREAM_LIMIT).encode()))
            return
        stream = self._streams[number] = Stream(self, number, _NOBODY)
        self._user.requested(stream, document)

    def _take_of_stream(self, event: Event) -> None:
        stream = self._streams.get(event.stream)  # type: ignore[union-attr]  # those without one are dealt with
        if stream is None:
            return
        match event:
            case StreamAccepted(_, document):
                stream.user.accepted(document)
                stream.go()
            case StreamRefused(_, document):
                self.forget(stream)
                stream.user.refused(document)
            case DatagramReceived(_, data):
                stream.consumed(datagram_cost(len(data)))
                stream.user.datagram_received(data)
            case StreamEnded():
                self.forget_if_over(stream)
                stream.user.ended()
            case StreamReset(_, code):
                self.forget(stream)
                stream.user.over(reason_of(code))


class _Nobody:
    """Uses a stream that nobody has accepted yet."""

    def accepted(self, document: bytes) -> None: ...

    def refused(self, document: bytes) -> None: ...

    def received(self, data: bytes) -> None: ...

    def datagram_received(self, data: bytes) -> None: ...

    def sent(self, size: int) -> None: ...

    def ended(self) -> None: ...

    def over(self, reason: Reason) -> None: ...


_NOBODY = _Nobody()

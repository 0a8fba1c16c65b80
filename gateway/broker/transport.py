"""A stream as asyncio's protocols know connections, so that what speaks HTTP over TCP speaks it over a tunnel too."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import StreamRefusal

HIGH_WATER = 64 << 10


class StreamTransport(asyncio.Transport):
    """One end of a stream. Implements `foundation.tunnel.StreamUser`; `attach` says whose it is."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._stream: Stream | None = None
        self._held: deque[bytes] = deque()  # came while reading was paused
        self._paused = False
        self._blocked = False
        self._ended_there = False
        self._closing = False
        self._high = HIGH_WATER
        self.answer: asyncio.Future[None] | None = None  # of the other side, to one who asked for the stream

    def attach(self, stream: Stream) -> None:
        """It is this stream's end, which is open."""
        self._stream = stream
        self._protocol.connection_made(self)

    # --- asyncio.Transport ------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        stream = self._stream
        if stream is None or self._closing:
            return
        stream.write(bytes(data) if not isinstance(data, bytes) else data)
        if stream.backlog > self._high and not self._blocked:
            self._blocked = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._stream.backlog if self._stream is not None else 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._held and not self._paused and self._stream is not None:
            self._give(self._held.popleft())
        self._end_if_all_came()

    def is_closing(self) -> bool:
        return self._closing or self._stream is None

    def close(self) -> None:
        """End it once all that was written has left."""
        if self._closing or self._stream is None:
            return
        self._closing = True
        self._stream.end()
        if not self._stream.backlog:
            self._finish()

    def abort(self) -> None:
        """End it now."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(Reason.TUNNEL_LOST)
            self._tell_lost(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # --- foundation.tunnel.StreamUser ---------------------------------------------------------------------------

    def accepted(self, document: bytes) -> None:
        """The other side took the stream."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(None)

    def refused(self, document: bytes) -> None:
        """The other side did not."""
        self._fail(refused_for(document))

    def received(self, data: bytes) -> None:
        """A piece came."""
        if self._paused or self._held:
            self._held.append(data)
        else:
            self._give(data)

    def datagram_received(self, data: bytes) -> None:
        """There are none in a stream of bytes."""

    def sent(self, size: int) -> None:
        """Bytes have left."""
        stream = self._stream
        if stream is None:
            return
        if self._blocked and stream.backlog <= self._high // 2:
            self._blocked = False
            self._protocol.resume_writing()
        if self._closing and not stream.backlog:
            self._finish()

    def ended(self) -> None:
        """The other side sends no more."""
        self._ended_there = True
        self._end_if_all_came()

    def over(self, reason: Reason) -> None:
        """It was reset, or its tunnel is gone."""
        self._fail(reason)
        if self._stream is not None:
            self._stream = None
            self._tell_lost(ConnectionResetError(reason.code))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _give(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.consumed(len(data))
            if not self._closing:
                self._protocol.data_received(data)

    def _end_if_all_came(self) -> None:
        """No half-closed connections: what was written still leaves (as TLS connections do here)."""
        if self._ended_there and not self._held and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _finish(self) -> None:
        """All has left. What the other side still sends is not heard."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if not self._ended_there:
                stream.reset(Reason.TUNNEL_LOST)
            self._tell_lost(None)

    def _fail(self, reason: Reason) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(Fault(reason))

    def _tell_lost(self, error: Exception | None) -> None:
        self._held.clear()
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)


def refused_for(document: bytes) -> Reason:
    """Why the other side did not take a stream; `RELAY_REFUSED` where what it said is no refusal."""
    try:
        return StreamRefusal.parse(document).reason
    except Fault:
        return Reason.RELAY_REFUSED

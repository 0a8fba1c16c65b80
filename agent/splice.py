"""A stream and a local connection, joined: what comes of one goes to the other.

Laws held here:
- what waits on either side is bounded: each that sends reads a share (`Room`), and no more while half of one has not
  left; the stream gets room back only for what the local socket took. So what waits of all streams together is bounded
  too, for a tunnel that stands still holds up all of them. And so is what the kernel keeps of a socket that is not
  read: it would take as much as it gives a fast connection (tcp_rmem), a thousand times over, until its memory for TCP
  is used up and the tunnel itself stalls;
- all that send have the same share, so that each has as much as the others when its turn in the tunnel comes. Turns
  alone are not fair: who had read much sent more in each than who had read little;
- each direction ends by itself (a half-closed connection stays half-closed); what broke off breaks off the other side.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from foundation.clock import Clock
from foundation.reasons import Reason
from foundation.tunnel import Stream

READ = 128 << 10
"""At most so many bytes are read from a local connection at once."""
MUCH = 4 << 20
"""What those that send share: the more they are, the less each reads at once. While their number grows, more than that
waits, for who came earlier read more: MUCH x ln(READ / LITTLE) at most, and half of it all."""
LITTLE = 8 << 10
"""What each may read in any case."""
_PERIOD = 1.0
"""Seconds in which those count that have read in it, or in the one before. Who counted those alone that wait now would
give the first much and the last little, each time a tunnel has taken all of it."""
_HELD = 128 << 10
_KERNEL_ROOM = 128 << 10  # it takes twice of it
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, no time to linger: the kernel sends RST


class Room:
    """What the splices of one event loop share: where they read into, and how many are `busy`: have something
    that waits to leave."""

    def __init__(self, clock: Clock) -> None:
        self.busy = 0
        self._clock = clock
        self._all = memoryview(bytearray(READ))
        self._period = 0
        self._until = 0.0  # the end of the period
        self._readers = self._readers_before = 0

    @property
    def share(self) -> int:
        """How much each may read at once."""
        return max(LITTLE, min(READ, MUCH // max(self.busy, self._readers, self._readers_before, 1)))

    def count(self, period: int) -> int:
        """A splice reads that did so in `period` last: the present one."""
        now = self._clock.monotonic()
        if now >= self._until:
            self._readers_before = self._readers if now < self._until + _PERIOD else 0
            self._readers = 0
            self._period += 1
            self._until = now + _PERIOD
        if period != self._period:
            self._readers += 1
        return self._period

    @property
    def view(self) -> memoryview:
        """To read into."""
        return self._all[: self.share]

    def read(self, size: int) -> bytes:
        """A copy of what was read, to be made at once."""
        return bytes(self._all[:size])


class Splice(asyncio.BufferedProtocol):
    """Both the stream's user and the local connection's protocol. What the stream brings before the connection stands
    is kept; that is no more than the stream's window."""

    def __init__(
        self,
        stream: Stream,
        room: Room,
        gone: Callable[[], None],
        *,
        connected: Callable[[], bool] = lambda: True,
    ) -> None:
        """`connected` is told when the local connection stands, and says whether it may go on. `gone` is told once,
        when it is over."""
        self.stream = stream
        self._room = room
        self._gone = gone
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._takes = True  # the local connection takes what we write
        self._reads = True
        self._owed = 0  # written, and not given back to the stream yet
        self._busy = False
        self._period = 0  # in which it read last
        self._ended_here = self._ended_there = False
        self._over = False

    def break_off(self, reason: Reason) -> None:
        """End both sides, now."""
        self.stream.reset(reason)
        self.over(reason)

    # --- the local connection -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = connection = cast(asyncio.Transport, transport)  # uvloop's are not of the class
        connection.set_write_buffer_limits(high=_HELD)
        connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_ROOM)
        if self._over or not self._connected():
            self._break_off_connection()
            return
        early, self._early = self._early, []
        for data in early:
            self.received(data)
        if self._ended_there:
            connection.write_eof()

    def get_buffer(self, sizehint: int) -> memoryview:
        self._period = self._room.count(self._period)
        return self._room.view

    def buffer_updated(self, nbytes: int) -> None:
        self.stream.write_in_turn(self._room.read(nbytes))
        self._count()
        if self._reads and self._is_full and self._transport is not None:
            self._reads = False
            self._transport.pause_reading()

    @property
    def _is_full(self) -> bool:
        return self.stream.backlog > self._room.share // 2

    def _count(self) -> None:
        before, self._busy = self._busy, not self._over and self.stream.backlog > 0
        self._room.busy += self._busy - before

    def eof_received(self) -> bool:
        self._ended_here = True
        self.stream.end()
        return not self._ended_there  # open for what still comes

    def pause_writing(self) -> None:
        self._takes = False

    def resume_writing(self) -> None:
        self._takes = True
        owed, self._owed = self._owed, 0
        self.stream.consumed(owed)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if error is not None or not (self._ended_here and self._ended_there):
            self.stream.reset(Reason.STREAM_ABORTED)
        self._over = True
        self._count()
        self._gone()

    # --- the stream -----------------------------------------------------------------------------------------

    def accepted(self, document: bytes) -> None: ...

    def refused(self, document: bytes) -> None: ...

    def received(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
            return
        if self._transport.is_closing():
            return  # it broke off, and we are about to hear of it
        self._transport.write(data)
        if self._takes:
            self.stream.consumed(len(data))
        else:
            self._owed += len(data)

    def datagram_received(self, data: bytes) -> None:
        self.break_off(Reason.TUNNEL_MALFORMED)

    def sent(self, size: int) -> None:
        self._count()
        if not self._reads and not self._is_full and self._transport is not None:
            self._reads = True
            self._transport.resume_reading()

    def ended(self) -> None:
        self._ended_there = True
        if self._transport is None or self._transport.is_closing():
            return
        if self._ended_here:
            self._transport.close()
        else:
            self._transport.write_eof()

    def over(self, reason: Reason) -> None:
        if not self._over:
            self._over = True
            self._count()
            self._break_off_connection()

    def _break_off_connection(self) -> None:
        if self._transport is not None:
            reset_when_closed(self._transport.get_extra_info("socket"))
            self._transport.abort()


def reset_when_closed(connection: socket.socket) -> None:
    """Let the other side of `connection` see a broken connection (RST) instead of an end, where it is of TCP."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

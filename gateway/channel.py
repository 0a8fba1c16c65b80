"""The socket between the main process and one worker, with what may wait in it bounded.

Laws held here:
- a peer that does not read is not waited for: beyond `MAX_UNSENT` bytes that it has not taken, the channel ends;
- what is no message of the other side's ends it too.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import cast

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.control import Frames, Message, encode

MAX_UNSENT = 32 << 20  # bytes, a revision's bundle not counted


class Channel(asyncio.Protocol):
    """One end. `take` gets each message; `ended` is called once, with what was wrong, or None when the peer closed."""

    def __init__(self, frames: Frames, take: Callable[[Message], None], ended: Callable[[Fault | None], None]) -> None:
        self._frames = frames
        self._take = take
        self._ended: Callable[[Fault | None], None] | None = ended
        self._transport: asyncio.Transport | None = None
        self._allowance = MAX_UNSENT
        self._drained = asyncio.Event()
        self._drained.set()
        self.heard = 0  # how often something came

    @classmethod
    async def open(
        cls,
        end: socket.socket,
        frames: Frames,
        take: Callable[[Message], None],
        ended: Callable[[Fault | None], None],
    ) -> Channel:
        """Speak over `end`, which belongs to the channel from now on."""
        end.setblocking(False)
        channel = cls(frames, take, ended)
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=end)
        return channel

    def send(self, message: Message, *, large: bool = False) -> None:
        """Say it. `large` messages, which come one at a time, do not count against the bound. Nothing happens once the
        channel has ended."""
        transport = self._transport
        if transport is None:
            return
        frame = encode(message)
        if large:
            self._allowance = MAX_UNSENT + len(frame)
        transport.write(frame)
        unsent = transport.get_write_buffer_size()
        if not unsent:
            self._allowance = MAX_UNSENT
        elif unsent > self._allowance:
            self._end(Fault(Reason.OVERLOADED, "the other side does not read", field="control"))

    async def wait_drained(self) -> None:
        """Return once most of what was said has been taken, or the channel has ended."""
        await self._drained.wait()

    async def wait_taken(self) -> None:
        """Return once all that was said is with the kernel, or the channel has ended."""
        while self._transport is not None and self._transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # the loop tells of its low-water mark, not of emptiness

    @property
    def is_full(self) -> bool:
        """Whether the other side has much to read still."""
        return not self._drained.is_set()

    @property
    def is_closed(self) -> bool:
        return self._transport is None

    async def release(self) -> tuple[int, bytes]:
        """Let go of the socket: a descriptor of it that stays open, and what is here of a message that is not whole.
        What was said has gone out by then."""
        transport = self._transport
        if transport is None:
            return -1, b""
        transport.pause_reading()
        await self.wait_taken()
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        self.close()
        return descriptor, self._frames.begun

    def close(self) -> None:
        """End it; `ended` is not called."""
        self._ended = None
        if self._transport is not None:
            self._transport.close()

    # --- what the event loop calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except Fault as fault:
            self._end(fault)

    def eof_received(self) -> None:
        """The peer is gone: there is no half of it."""

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._drained.set()
        self._tell(None)

    def _end(self, fault: Fault) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._tell(fault)

    def _tell(self, fault: Fault | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(fault)

"""Both ends of a tunnel in one process, over connections that block when a test says so."""

from __future__ import annotations

import asyncio

from foundation.reasons import Reason
from foundation.tunnel import Stream, Tunnel
from foundation.wire.streams import StreamRefusal
from foundation.wire.tunnel import STREAMS
from tests.fakes.clock import ManualClock

DOCUMENT = b"{}"


class Pipe(asyncio.Transport):
    """Takes bytes for the other end. As asyncio's transports do, it tells its owner when it has too many (`most`) and
    when it has few again; it passes them on when the test says `flow`."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most = most
        self.waiting = bytearray()
        self.is_aborted = False
        self.owner: Tunnel | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.most = self.most or high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.waiting += data
        if self.owner is not None and self.most is not None and len(self.waiting) > self.most:
            self.owner.blocked()

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def abort(self) -> None:
        self.is_aborted = True

    def flow(self) -> bytes:
        """What was waiting: it is on its way."""
        gone = bytes(self.waiting)
        self.waiting.clear()
        if self.owner is not None and self.owner.is_blocked:
            self.owner.unblocked()
        return gone


class Recorder:
    """Uses a stream; everything that it is told."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.datagrams: list[bytes] = []
        self.told: list[str] = []
        self.sent_bytes = 0

    def accepted(self, document: bytes) -> None:
        self.told.append("accepted")

    def refused(self, document: bytes) -> None:
        self.told.append(f"refused {StreamRefusal.parse(document).reason.code}")

    def received(self, data: bytes) -> None:
        self.heard += data

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.append(data)

    def sent(self, size: int) -> None:
        self.sent_bytes += size

    def ended(self) -> None:
        self.told.append("ended")

    def over(self, reason: Reason) -> None:
        self.told.append(f"over {reason.code}")


class End:
    """A tunnel and who has it: it takes every stream, unless `answers` is off."""

    def __init__(self, *, dials: bool, most: int | None = None, most_streams: int = STREAMS) -> None:
        self.clock = ManualClock()
        self.tunnel = Tunnel(self, self.clock, dials=dials, most_streams=most_streams)
        self.pipe = Pipe(most)
        self.pipe.owner = self.tunnel
        self.tunnel.made(self.pipe)
        self.answers = True
        self.requests: list[Stream] = []
        self.users: dict[int, Recorder] = {}
        self.drained = 0
        self.tunnel.hello(DOCUMENT)

    def greeted(self, document: bytes) -> None: ...

    def requested(self, stream: Stream, document: bytes) -> None:
        self.requests.append(stream)
        if self.answers:
            self.accept(stream)

    def draining(self) -> None:
        self.drained += 1

    def accept(self, stream: Stream) -> Recorder:
        user = self.users[stream.number] = Recorder()
        stream.accept(user, DOCUMENT)
        return user


class Ends:
    def __init__(self, *, most: int | None = None) -> None:
        self.node = End(dials=True, most=most)
        self.gateway = End(dials=False)

    async def settle(self, *, back: bool = True) -> None:
        """Let both hear what the other has said; `back`: the gateway's words too."""
        for _ in range(6):
            await asyncio.sleep(0)
            self.gateway.tunnel.received(self.node.pipe.flow())
            await asyncio.sleep(0)
            if back:
                self.node.tunnel.received(self.gateway.pipe.flow())

    async def open(self) -> tuple[Stream, Recorder]:
        user = Recorder()
        stream = self.node.tunnel.open(user, DOCUMENT)
        await self.settle()
        return stream, user

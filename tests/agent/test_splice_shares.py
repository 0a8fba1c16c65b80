"""Connections that all send as fast as they can get equal shares of a tunnel, over all three places where they wait:
the sending agent, the gateway, the other agent. Nothing is left to chance: the links take so many bytes a turn, local
connections are read in the order in which they can be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.splice import Room, Splice
from foundation.tunnel import Stream, Tunnel
from gateway.broker.stream import Side
from tests.fakes.clock import ManualClock
from tests.support.tunnel_ends import DOCUMENT, Pipe

STREAMS, SLOW = 160, 10  # of which every tenth has a reader that is slow, where a test has such
TURNS, EARLY = 1200, 300
TURN_SECONDS = 0.001
IN_SOCKET = 400 << 10
LEAST = 20_000  # bytes a turn that pass in any case, of 64,000: a burst may come when less waits
ENDLESS = 1 << 40


class Link(Pipe):
    """Takes `rate` bytes a turn, or so many turns' at once, every `burst` turns."""

    def __init__(self, rate: int = ENDLESS, burst: int = 1) -> None:
        super().__init__()
        self.rate, self.burst, self.turn, self.low = rate, burst, 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.most, self.low = high, low or 0

    def flow(self) -> bytes:
        self.turn += 1
        gone = bytearray()
        left = 0 if self.turn % self.burst else self.rate * self.burst
        while left > 0 and self.waiting:
            piece = self.waiting[:left]
            del self.waiting[:left]
            gone += piece
            left -= len(piece)
            if self.owner is not None and self.owner.is_blocked and len(self.waiting) <= self.low:
                self.owner.unblocked()
        return bytes(gone)


class Local(asyncio.Transport):
    """A local connection: what its program sends can always be read, what it is sent it takes, a slow one so much a
    turn."""

    def __init__(self, readable: deque[Local], takes: int = ENDLESS) -> None:
        super().__init__()
        self.splice: Splice
        self.carried = self.held = 0
        self.takes = takes
        self._readable = readable
        self._reads = False

    def join(self, stream: Stream, room: Room, *, reads: bool) -> Splice:
        self.splice = Splice(stream, room, lambda: None)
        stream.user = self.splice
        self.splice.connection_made(self)
        if reads:
            self.resume_reading()
        return self.splice

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return SimpleNamespace(setsockopt=lambda *_: None)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._reads = False

    def resume_reading(self) -> None:
        self._reads = True
        self._readable.append(self)

    def read(self) -> None:
        """As an event loop does: until it is told not to, or nothing is left."""
        left = IN_SOCKET
        while self._reads and left:
            size = min(len(self.splice.get_buffer(-1)), left)
            self.splice.buffer_updated(size)
            left -= size
        if self._reads:
            self._readable.append(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.held += len(data)
        if self.held > self.takes:
            self.splice.pause_writing()

    def take(self) -> None:
        size = min(self.held, self.takes)
        was_full = self.held > self.takes
        self.held -= size
        self.carried += size
        if was_full and self.held <= self.takes:
            self.splice.resume_writing()


class Owner:
    """Has a tunnel's end; `ask` says what a requested stream leads to."""

    def __init__(self, ask: Callable[[Stream], None] = lambda _: None) -> None:
        self._ask = ask

    def greeted(self, document: bytes) -> None: ...

    def requested(self, stream: Stream, document: bytes) -> None:
        self._ask(stream)

    def draining(self) -> None: ...


class Chain:
    """Agent, gateway, agent."""

    def __init__(self, first: Link, second: Link, slow: int) -> None:
        self.sources: list[Local] = []
        self.sinks: list[Local] = []
        self._slow = slow
        self._readable: deque[Local] = deque()
        self._clock = ManualClock()
        self._rooms = Room(self._clock), Room(self._clock)
        self._near, self._at_near = self._end(first, True), self._end(Link(), False, self._relay)
        self._at_far, self._far = self._end(second, False), self._end(Link(), True, self._serve)

    def _end(self, link: Link, dials: bool, ask: Callable[[Stream], None] = lambda _: None) -> Tunnel:
        tunnel = Tunnel(Owner(ask), self._clock, dials=dials)
        link.owner = tunnel
        tunnel.made(link)
        tunnel.hello(DOCUMENT)
        return tunnel

    def _relay(self, near: Stream) -> None:
        """At the gateway, as the broker joins two streams."""
        joined = cast(Any, SimpleNamespace(moved=lambda: None, answered=lambda _: None))
        here, there = Side(joined), Side(joined)
        here.other, there.other = there, here
        here.stream = near
        there.stream = self._at_far.open(there, DOCUMENT)
        near.accept(here, DOCUMENT)

    def _serve(self, stream: Stream) -> None:
        local = Local(self._readable, self._slow if len(self.sinks) % SLOW == 0 else ENDLESS)
        self.sinks.append(local)
        stream.accept(cast(Any, SimpleNamespace()), DOCUMENT)
        local.join(stream, self._rooms[1], reads=False)

    async def open(self) -> None:
        for _ in range(STREAMS):
            stream = self._near.open(cast(Any, SimpleNamespace(accepted=lambda _: None)), DOCUMENT)
            local = Local(self._readable)
            self.sources.append(local)
            for _ in range(200):
                await self.turn()
                if self._near.state.is_accepted(stream.number):
                    break
            local.join(stream, self._rooms[0], reads=False)
        for local in self.sources:
            local.resume_reading()

    async def turn(self) -> None:
        for _ in range(len(self._readable)):
            self._readable.popleft().read()
        for sender, receiver in (
            (self._near, self._at_near),
            (self._at_far, self._far),
            (self._far, self._at_far),
            (self._at_near, self._near),
        ):
            await asyncio.sleep(0)
            receiver.received(cast(Link, sender._transport).flow())
        for local in self.sinks:
            local.take()
        self._clock.advance(TURN_SECONDS)

    async def carried(self) -> list[int]:
        """What each connection carried, the first turns left out."""
        await self.open()
        for _ in range(EARLY):
            await self.turn()
        before = [local.carried for local in self.sinks]
        for _ in range(TURNS):
            await self.turn()
        return [local.carried - was for local, was in zip(self.sinks, before, strict=True)]


LINKS = {
    "the first hop is narrow": lambda: (Link(64_000), Link()),
    "the second hop is narrow": lambda: (Link(), Link(64_000)),
    "both are": lambda: (Link(64_000), Link(64_000)),
    "the first comes in bursts": lambda: (Link(64_000, 9), Link()),
    "the second comes in bursts": lambda: (Link(), Link(64_000, 9)),
    "both come in bursts": lambda: (Link(64_000, 9), Link(64_000, 11)),
    "the first comes in bursts of more than waits": lambda: (Link(64_000, 60), Link()),
    "both do": lambda: (Link(64_000, 60), Link(64_000, 90)),
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS.keys())
async def test_all_that_send_get_the_same(
    links: Callable[[], tuple[Link, Link]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.splice.MUCH", 1 << 20)
    carried = await Chain(*links(), slow=ENDLESS).carried()
    assert max(carried) / min(carried) < 1.2
    assert sum(carried) > TURNS * LEAST


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS.keys())
async def test_who_reads_slowly_takes_nothing_from_others_and_gives_them_no_more_than_each(
    links: Callable[[], tuple[Link, Link]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.splice.MUCH", 1 << 20)
    takes = 64_000 // STREAMS // 8
    carried = await Chain(*links(), slow=takes).carried()
    slow = [size for number, size in enumerate(carried) if number % SLOW == 0]
    quick = [size for number, size in enumerate(carried) if number % SLOW]
    assert max(quick) / min(quick) < 1.2
    assert max(slow) <= TURNS * takes
    assert min(quick) > max(slow)
    assert sum(quick) > TURNS * LEAST

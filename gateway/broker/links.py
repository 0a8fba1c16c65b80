"""Connections to where other tunnels end, at the side that asks: each made when it is first needed, and again after a
loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tunnel import Stream, Tunnel
from foundation.tunnel_protocol import TunnelProtocol
from foundation.wire.streams import Hello

CONNECT_SECONDS = 5.0
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 20.0
STREAMS = 1 << 16
SOFTWARE = "sallyport"  # what HELLO tells
_LOG = logging.getLogger(__name__)


class Link(TunnelProtocol):
    """One connection to another worker or gateway. Implements `foundation.tunnel.TunnelUser`."""

    def __init__(self, clock: Clock) -> None:
        self.tunnel = Tunnel(self, clock, dials=True, most_streams=STREAMS, of_gateways=True)
        self.takes_streams = False

    def begin(self, hello: Hello) -> None:
        """See `TunnelProtocol.begin`."""
        super().begin(hello)
        self.takes_streams = self._transport is not None

    def broken(self, fault: Fault) -> None:
        """See `TunnelProtocol.broken`."""
        _LOG.error("a relay breaks the protocol: %s", fault)
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.takes_streams = False
        super().connection_lost(error)

    def abort(self) -> None:
        """End it now."""
        self.takes_streams = False
        if self._transport is not None:
            self._transport.abort()

    def greeted(self, document: bytes) -> None:
        """The other end is there."""
        Hello.parse(document)

    def requested(self, stream: Stream, document: bytes) -> None:
        """Nobody asks in this direction."""
        raise Fault(Reason.TUNNEL_MALFORMED, "only who dialled asks", field="relay")

    def draining(self) -> None:
        """The next stream gets a connection of its own; what is open goes on."""
        self.takes_streams = False

    @property
    def is_over(self) -> bool:
        return not self.takes_streams and not self.tunnel.streams


Dial = Callable[[Link], Awaitable[None]]


class Links:
    """The connections of one worker, by where they lead."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._links: dict[Hashable, Link] = {}
        self._dialling: dict[Hashable, asyncio.Task[Link]] = {}
        self._leaving: list[Link] = []

    async def to(self, place: Hashable, dial: Dial) -> Tunnel:
        """The tunnel to `place`; `dial` connects it. Raises `OSError`, `Fault`."""
        known = self._links.get(place)
        if known is not None and known.takes_streams:
            return known.tunnel
        dialling = self._dialling.get(place)
        if dialling is None:
            dialling = self._dialling[place] = asyncio.get_running_loop().create_task(self._connect(place, dial))
        return (await asyncio.shield(dialling)).tunnel

    async def _connect(self, place: Hashable, dial: Dial) -> Link:
        link = Link(self._clock)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await dial(link)
            link.begin(Hello(SOFTWARE))
        except BaseException:
            link.abort()
            raise
        finally:
            del self._dialling[place]
        before = self._links.get(place)
        if before is not None and not before.is_over:
            self._leaving.append(before)
        self._links[place] = link
        return link

    async def run(self) -> None:
        """Ask each for signs of life, and give up who shows none, until cancelled."""
        while True:
            await self._clock.sleep(BEAT_SECONDS)
            self.beat()

    def beat(self) -> None:
        """One round of that."""
        now = self._clock.monotonic()
        self._links = {place: link for place, link in self._links.items() if not link.is_over}
        self._leaving = [link for link in self._leaving if not link.is_over]
        for link in (*self._links.values(), *self._leaving):
            if now - link.tunnel.heard_at > SILENCE_SECONDS:
                link.abort()
            else:
                link.tunnel.ping()

    async def close(self) -> None:
        """End all of them."""
        dialling = list(self._dialling.values())
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        for link in (*self._links.values(), *self._leaving):
            link.abort()

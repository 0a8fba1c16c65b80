"""From worker to worker of one gateway, by Unix sockets: the way to a tunnel that ends at a sibling.

Laws held here:
- it is one hop: who is asked has the target's tunnel itself, or refuses;
- who is asked decides again, on the certificate that the source proved to who asks;
- the kernel says who is there: a process of the same user.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.listening import peer_uid
from foundation.reasons import Reason
from foundation.tunnel import Stream, Tunnel
from foundation.tunnel_protocol import TunnelProtocol
from foundation.wire.streams import Hello, StreamRefusal, StreamRelay
from gateway.broker.broker import Broker
from gateway.broker.callers import Callers, proven_here
from gateway.broker.links import SOFTWARE, STREAMS, Link, Links
from gateway.broker.siblings import SiblingTable
from gateway.broker.stream import WaitingStreams
from gateway.proxy.services import ConnectionServices

SWEEP_SECONDS = 0.25
_LOG = logging.getLogger(__name__)


class SiblingsRelay:
    """Implements `gateway.broker.broker.Relay`. Each worker listens on a socket in `folder`, by its number."""

    def __init__(self, table: SiblingTable, folder: Path, worker: int, clock: Clock) -> None:
        self._table = table
        self._worker = worker
        self._links = Links(clock)
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._ends: set[SiblingEnd] = set()
        folder.mkdir(mode=0o700, exist_ok=True)
        # A socket's address has 108 bytes (sun_path, unix(7)); a state folder's name may have more.
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    async def to(self, target: SpiffeId) -> tuple[Tunnel, int]:
        """See `Relay.to`."""
        owner = self._table.owner(target)
        if owner is None or owner.worker == self._worker:
            raise Fault(Reason.TARGET_ABSENT)
        path = self._path(owner.worker)
        return await self._links.to(owner.worker, lambda link: _dial(link, path)), owner.epoch

    async def listen(self, services: ConnectionServices, broker: Broker) -> None:
        """Take what siblings pass on."""
        listening = self._listening()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: SiblingEnd(services, broker, self._ends), sock=listening)

    async def run(self) -> None:
        """Keep what is connected alive and end what is late, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._links.run())
            while True:
                await self._clock.sleep(SWEEP_SECONDS)
                now = self._clock.monotonic()
                for end in self._ends:
                    end.sweep(now)

    async def close(self) -> None:
        """End all of it."""
        if self._server is not None:
            self._server.close()
            self._remove()
        for end in list(self._ends):
            end.abort()
        await self._links.close()
        os.close(self._descriptor)

    def _listening(self) -> socket.socket:
        """Our socket, in the place of one that another worker of this number left."""
        self._remove()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(self._path(self._worker))
        os.chmod(self._path(self._worker), 0o600)
        return listening

    def _remove(self) -> None:
        Path(self._path(self._worker)).unlink(missing_ok=True)

    def _path(self, worker: int) -> str:
        return f"/proc/self/fd/{self._descriptor}/{worker}.sock"


class SiblingEnd(TunnelProtocol):
    """A connection of another worker, at the side that is asked. Implements `foundation.tunnel.TunnelUser`."""

    def __init__(self, services: ConnectionServices, broker: Broker, ends: set[SiblingEnd]) -> None:
        self._services = services
        self._broker = broker
        self._ends = ends
        self._callers = Callers(services.trust_domain, proven_here)
        self._waiting = WaitingStreams()
        self.tunnel = Tunnel(self, services.clock, dials=False, most_streams=STREAMS, of_gateways=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if peer_uid(transport.get_extra_info("socket")) != os.geteuid():
            self.abort()
            return
        self._ends.add(self)
        self.begin(Hello(SOFTWARE))

    def broken(self, fault: Fault) -> None:
        """See `TunnelProtocol.broken`."""
        _LOG.error("a relay breaks the protocol: %s", fault)
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._ends.discard(self)
        super().connection_lost(error)

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def greeted(self, document: bytes) -> None:
        """Who asks is there."""
        Hello.parse(document)

    def requested(self, stream: Stream, document: bytes) -> None:
        """A stream whose target's tunnel should end here."""
        relay = StreamRelay.parse(document)
        try:
            caller = self._callers.of(relay.certificate)
            brokered = self._broker.relayed(self._services, caller, stream, relay, by_sibling=True)
        except Fault as fault:
            stream.refuse(StreamRefusal(fault.reason).encode())
            return
        if brokered is not None:
            self._waiting.add(brokered)

    def draining(self) -> None:
        """Who asks goes; it asks no more."""

    def sweep(self, now: float) -> None:
        """End streams that are late at `now` (monotonic seconds)."""
        self._waiting.sweep(now)


async def _dial(link: Link, path: str) -> None:
    await asyncio.get_running_loop().create_unix_connection(lambda: link, path)

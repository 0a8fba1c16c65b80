"""Data planes with a broker, and nodes that hold tunnels to them, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from foundation.clock import SystemClock
from foundation.identifiers import Kind
from foundation.reasons import Reason
from foundation.tls import client_context, server_context
from foundation.tunnel import Stream, Tunnel
from foundation.wire.streams import Hello, StreamAnswer, StreamCall, StreamRefusal, StreamRequest
from foundation.wire.tunnel import PROTOCOL, RELAY_PROTOCOL
from gateway.broker.broker import Announcer, Broker, Relay
from gateway.broker.callers import check_issued
from gateway.broker.connection import RelayConnection, TunnelConnection
from gateway.broker.settings import BrokerSettings
from gateway.broker.siblings import SiblingTable
from gateway.broker.siblings_relay import SiblingsRelay
from policies.routes import Route, RouteType
from tests.fakes.trust import spiffe
from tests.support.gateway import HOST, PATIENCE, DataPlane

STREAM_ROUTE = Route("database", RouteType.STREAM, "", (), None, service="postgres", protocol="tcp")
HTTP_ROUTE = Route("web", RouteType.STREAM, "", (), None, service="web", protocol="http")
DATAGRAM_ROUTE = Route("metrics", RouteType.STREAM, "", (), None, service="statsd", protocol="udp")


class BrokeredPlane(DataPlane):
    """A worker with a broker. Those of one `folder` are siblings, of the numbers that they are given."""

    def __init__(
        self,
        folder: Path,
        routes: tuple[Route, ...] = (STREAM_ROUTE, DATAGRAM_ROUTE),
        *,
        worker: int = 0,
        like: BrokeredPlane | None = None,
        settings: BrokerSettings | None = None,
    ) -> None:
        """`like` is another plane whose authority this one shares."""
        own = folder / f"worker-{worker}"
        own.mkdir()
        super().__init__(own, routes)
        if like is not None:
            self.authority = like.authority
            self.server = like.server
        self.context = server_context(
            self.server, client_roots=self.authority.pem, protocols=(PROTOCOL, RELAY_PROTOCOL)
        )
        self.table = SiblingTable.shared(folder / "siblings", worker)
        self.siblings = SiblingsRelay(self.table, folder / "relay", worker, self.clock)
        self.broker_settings = settings or BrokerSettings()
        self.join()

    def prove(self, spiffe_id: str) -> None:
        """Be a gateway of this ID."""
        self.server = self.authority.service(spiffe_id, "gateway-proves", HOST)
        self.context = server_context(
            self.server, client_roots=self.authority.pem, protocols=(PROTOCOL, RELAY_PROTOCOL)
        )

    def join(self, gateways: Relay | None = None, announcer: Announcer | None = None) -> None:
        """Build the broker, with a way to other gateways where there is one."""
        self.broker = broker = Broker(self.broker_settings, self.table, self.store, self.siblings, gateways, announcer)

        def check(certificate: bytes) -> None:
            check_issued(certificate, (self.authority.certificate,), self.clock.now())

        self.services.protocols = {
            PROTOCOL: lambda services, others: TunnelConnection(services, others, broker),
            RELAY_PROTOCOL: lambda services, others: RelayConnection(services, others, broker, check),
        }

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[BrokeredPlane]:
        async with super().running():
            self.broker.connections = self.listener.connections
            await self.siblings.listen(self.services, self.broker)
            try:
                yield self
            finally:
                await self.siblings.close()

    async def node(self, name: str, **options: Any) -> Node:
        """A node of this name with a tunnel that is greeted."""
        self.know(name)
        node = await self.dial(name, **options)
        await self.until(lambda: node.greeting is not None)
        await self.until(lambda: self.broker.holder(spiffe(name)) is not None)
        return node

    async def dial(self, name: str, *, kind: Kind = Kind.NODE, protocol: str = PROTOCOL) -> Node:
        """A tunnel of a node of this name, whatever becomes of it."""
        pair = self.pair(name, kind)
        context = client_context(self.authority.pem, pair=pair, check_hostname=False, protocols=(protocol,))
        node = Node(name)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: node, *self.address, ssl=context, server_hostname=HOST)
        self.clients.append(node)
        return node


@dataclass
class Use:
    """One end of a stream, as a test sees it. Implements `foundation.tunnel.StreamUser`."""

    call: StreamCall | None = None
    stream: Stream | None = None
    answer: StreamAnswer | None = None
    refusal: StreamRefusal | None = None
    data: bytearray = field(default_factory=bytearray)
    datagrams: list[bytes] = field(default_factory=list)
    sent_bytes: int = 0
    has_ended: bool = False
    cut: Reason | None = None
    reads: bool = True

    def accepted(self, document: bytes) -> None:
        self.answer = StreamAnswer.parse(document)

    def refused(self, document: bytes) -> None:
        self.refusal = StreamRefusal.parse(document)

    def received(self, data: bytes) -> None:
        self.data += data
        if self.reads and self.stream is not None:
            self.stream.consumed(len(data))

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.append(data)

    def sent(self, size: int) -> None:
        self.sent_bytes += size

    def ended(self) -> None:
        self.has_ended = True

    def over(self, reason: Reason) -> None:
        self.cut = reason

    def write(self, data: bytes) -> None:
        assert self.stream is not None
        self.stream.write(data)


class Node(asyncio.Protocol):
    """A node's end of a tunnel: takes what `check` does not refuse, and does nothing with it by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tunnel = Tunnel(self, SystemClock(), dials=True)
        self.greeting: Hello | None = None
        self.calls: list[Use] = []
        self.is_lost = False
        self.is_draining = False
        self.answers = True
        self.reads = True
        self.heard = 0  # bytes
        self.check: Callable[[StreamCall], Reason | None] = lambda call: None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.tunnel.made(self.transport)
        self.tunnel.hello(Hello("test", ("postgres",)).encode())

    def data_received(self, data: bytes) -> None:
        self.heard += len(data)
        self.tunnel.received(data)

    def pause_writing(self) -> None:
        self.tunnel.blocked()

    def resume_writing(self) -> None:
        self.tunnel.unblocked()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self.tunnel.lost()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def greeted(self, document: bytes) -> None:
        self.greeting = Hello.parse(document)

    def draining(self) -> None:
        self.is_draining = True

    def requested(self, stream: Stream, document: bytes) -> None:
        use = Use(StreamCall.parse(document), stream, reads=self.reads)
        self.calls.append(use)
        stream.user = use
        if not self.answers:
            return
        assert use.call is not None
        refusal = self.check(use.call)
        if refusal is not None:
            stream.refuse(StreamRefusal(refusal).encode())
        else:
            stream.accept(use, StreamAnswer().encode())

    def open(self, target: str, route: str = "database", protocol: str = "tcp", *, reads: bool = True) -> Use:
        """Ask for a stream."""
        use = Use(reads=reads)
        use.stream = self.tunnel.open(use, StreamRequest(route, target, protocol).encode())
        return use

    async def reach(self, target: str, route: str = "database", protocol: str = "tcp") -> Use:
        """A stream that is answered, one way or the other."""
        use = self.open(target, route, protocol)
        await settled(lambda: use.answer is not None or use.refusal is not None or use.cut is not None)
        return use


async def settled(condition: Callable[[], bool]) -> None:
    """Wait for what others do by themselves."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # they tell nobody
            await asyncio.sleep(0.001)

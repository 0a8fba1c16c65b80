"""The gateway's end of nodes' tunnels: real TLS and real frames, and decisions as the test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from cryptography import x509

from agent.settings import Address
from foundation.clock import Clock, SystemClock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.leaf import spiffe_id
from foundation.reasons import Reason
from foundation.tls import KeyPair, peer_certificate, server_context
from foundation.tunnel import Stream, StreamUser, Tunnel
from foundation.wire.streams import Hello, StreamAnswer, StreamCall, StreamRefusal, StreamRequest
from foundation.wire.tunnel import PROTOCOL
from tests.fakes.trust import TRUST_DOMAIN
from tests.support.certificates import SmallAuthority

Decide = Callable[[StreamRequest], Reason | None]


class Echo:
    """Uses a stream and sends back what comes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reason: Reason | None = None

    def accepted(self, document: bytes) -> None: ...

    def refused(self, document: bytes) -> None: ...

    def received(self, data: bytes) -> None:
        self.stream.write(data)

    def datagram_received(self, data: bytes) -> None:
        self.stream.send_datagram(data)

    def sent(self, size: int) -> None:
        self.stream.consumed(size)

    def ended(self) -> None:
        self.stream.end()

    def over(self, reason: Reason) -> None:
        self.reason = reason


class Silent(Echo):
    """Takes what comes and gives no room back."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.got = 0

    def received(self, data: bytes) -> None:
        self.got += len(data)

    def ended(self) -> None: ...


class Caller:
    """Uses a stream that the gateway asked a node for."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Reason | None] = asyncio.get_running_loop().create_future()
        self.stream: Stream
        self.got = bytearray()
        self.datagrams: asyncio.Queue[bytes] = asyncio.Queue()
        self.came = asyncio.Event()
        self.ended_at_node = asyncio.Event()
        self.broke_off: asyncio.Future[Reason] = asyncio.get_running_loop().create_future()

    def accepted(self, document: bytes) -> None:
        StreamAnswer.parse(document)
        self.answer.set_result(None)

    def refused(self, document: bytes) -> None:
        self.answer.set_result(StreamRefusal.parse(document).reason)

    def received(self, data: bytes) -> None:
        self.got += data
        self.stream.consumed(len(data))
        self.came.set()

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.put_nowait(data)

    def sent(self, size: int) -> None: ...

    def ended(self) -> None:
        self.ended_at_node.set()

    def over(self, reason: Reason) -> None:
        self.broke_off.set_result(reason)

    async def read(self, size: int) -> bytes:
        while len(self.got) < size:
            self.came.clear()
            await self.came.wait()
        found, self.got = bytes(self.got[:size]), self.got[size:]
        return found


class _Half:
    """One half of a brokered stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.other: _Half
        self.on_answer: Callable[[bytes, bool], None] = lambda _document, _accepted: None

    def accepted(self, document: bytes) -> None:
        self.on_answer(document, True)

    def refused(self, document: bytes) -> None:
        self.on_answer(document, False)

    def received(self, data: bytes) -> None:
        self.other.stream.write(data)

    def datagram_received(self, data: bytes) -> None:
        self.other.stream.send_datagram(data)

    def sent(self, size: int) -> None:
        self.other.stream.consumed(size)

    def ended(self) -> None:
        self.other.stream.end()

    def over(self, reason: Reason) -> None:
        self.other.stream.reset(reason)


class End(asyncio.Protocol):
    """The gateway's end of one tunnel."""

    def __init__(self, gateway: FakeGateway, clock: Clock) -> None:
        self.gateway = gateway
        self.tunnel = Tunnel(self, clock, dials=False)
        self.hello: Hello | None = None
        self.node: SpiffeId | None = None
        self.is_draining = False
        self.lost = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.node = spiffe_id(x509.load_der_x509_certificate(peer_certificate(transport) or b""))
        self.gateway.ends.append(self)
        self.tunnel.made(self.transport)
        if self.gateway.greets:
            self.tunnel.hello(Hello("fake", (), self.gateway.revision).encode())

    def data_received(self, data: bytes) -> None:
        try:
            self.tunnel.received(data)
        except Fault as fault:
            self.gateway.faults.append(fault)
            if self.transport is not None:
                self.transport.abort()

    def pause_writing(self) -> None:
        self.tunnel.blocked()

    def resume_writing(self) -> None:
        self.tunnel.unblocked()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.lost.set()
        self.gateway.ends.remove(self)
        self.tunnel.lost()

    def greeted(self, document: bytes) -> None:
        self.hello = Hello.parse(document)
        self.gateway.changed.set()

    def draining(self) -> None:
        self.is_draining = True
        self.gateway.changed.set()

    def requested(self, stream: Stream, document: bytes) -> None:
        request = StreamRequest.parse(document)
        self.gateway.requests.append(request)
        reason = self.gateway.decide(request)
        if reason is not None:
            stream.refuse(StreamRefusal(reason, "d-1").encode())
        elif self.gateway.holds_answers:
            pass
        elif self.gateway.broker is not None:
            self.gateway.broker(stream, request)
        else:
            user = self.gateway.use(stream)
            self.gateway.users.append(user)
            stream.accept(user, StreamAnswer("d-1").encode())

    def call(self, call: StreamCall) -> Caller:
        """Ask the node for a stream."""
        caller = Caller()
        caller.stream = self.tunnel.open(caller, call.encode())
        return caller


class FakeGateway:
    """Listens at `address`. What it saw is in the lists; what it does is set by the attributes."""

    def __init__(self, authority: SmallAuthority, *, name: str = "gw-1", kind: str = "gateway") -> None:
        self.pair = authority.service(f"spiffe://{TRUST_DOMAIN}/{kind}/{name}", name, "localhost")
        self.authority = authority
        self.roots = authority.pem
        self.protocols: tuple[str, ...] = (PROTOCOL,)
        self.greets = True
        self.revision = 1
        self.decide: Decide = lambda request: None
        self.use: Callable[[Stream], StreamUser] = Echo
        self.broker: Callable[[Stream, StreamRequest], None] | None = None
        self.holds_answers = False
        self.ends: list[End] = []
        self.users: list[Any] = []
        self.requests: list[StreamRequest] = []
        self.faults: list[Fault] = []
        self.changed = asyncio.Event()
        self.address = Address("localhost", 0)
        self.accepted = 0
        self._server: asyncio.Server | None = None

    def context(self) -> ssl.SSLContext:
        return server_context(KeyPair(*self.pair), client_roots=self.roots, protocols=self.protocols)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[FakeGateway]:
        await self.start()
        try:
            yield self
        finally:
            self.kill()

    async def start(self) -> None:
        """Listen, at the port of before where there was one."""
        self._server = await asyncio.get_running_loop().create_server(
            self._end, "127.0.0.1", self.address.port, ssl=self.context()
        )
        self.address = Address("localhost", self._server.sockets[0].getsockname()[1])

    def kill(self) -> None:
        """As kill -9 does: all connections break off, nobody listens."""
        if self._server is not None:
            self._server.close()
        for end in list(self.ends):
            if end.transport is not None:
                end.transport.abort()

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Until `holds`; asked at each greeting and each drain."""
        while not holds():
            self.changed.clear()
            await self.changed.wait()

    async def tunnel(self, count: int = 1) -> End:
        """The newest of `count` tunnels that have greeted."""
        await self.wait_until(lambda: len([end for end in self.ends if end.hello]) >= count)
        return self.ends[-1]

    def join_nodes(self) -> None:
        """Broker each stream to the node that it is for, which has a tunnel here."""
        self.broker = self._join

    def _join(self, stream: Stream, request: StreamRequest) -> None:
        target = next((end for end in self.ends if end.node and end.node.name == request.target), None)
        if target is None:
            stream.refuse(StreamRefusal(Reason.TARGET_ABSENT).encode())
            return
        near, far = _Half(stream), _Half(stream)
        near.other, far.other = far, near
        stream.user = near

        def answered(document: bytes, accepted: bool) -> None:
            if accepted:
                stream.accept(near, document)
            else:
                stream.refuse(document)

        far.on_answer = answered
        source = SpiffeId.parse(f"spiffe://{TRUST_DOMAIN}/node/edge-a")
        call = StreamCall(source, ("edge",), request.route, request.route, request.protocol, 1, "d-1")
        far.stream = target.tunnel.open(far, call.encode())

    def _end(self) -> End:
        self.accepted += 1
        return End(self, SystemClock())

"""A data plane on real sockets: listener, decider, registry and upstreams, with policy and records that tests see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from foundation.decisionlog.ids import DecisionIds
from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.identity import Heartbeat, IdentityChanged, PostureChanged, SnapshotNumbers
from foundation.ports import DecisionEntry
from foundation.reasons import Reason
from foundation.tls import HTTP_1_1, HTTP_2, KeyPair, client_context, server_context
from gateway.proxy.assertion import AssertionKey, Assertions
from gateway.proxy.decide import Decider
from gateway.proxy.http2_budget import Flood, Http2Settings
from gateway.proxy.listener import Listener
from gateway.proxy.oblige import Obligations
from gateway.proxy.record import Records
from gateway.proxy.route import RouteTable
from gateway.proxy.services import ConnectionServices, GatewayListenerSettings
from gateway.proxy.upstream import Upstreams, UpstreamSettings
from gateway.snapshot import PolicyPart, SnapshotStore
from gateway.streams.registry import Cut, Registry
from gateway.upstreams.trust import UpstreamTrust
from policies.routes import Priority, Route, RouteType
from policies.staleness import StalenessSettings
from policies.upstreams import Address, Pool
from tests.fakes.clock import ManualClock
from tests.fakes.trust import HARDWARE, TRUST_DOMAIN, FakeEngine, record, spiffe
from tests.support.certificates import SmallAuthority

HOST = "control.example"
GATEWAY = "spiffe://fleet.example/gateway/gw-1"
PATIENCE = 15.0  # seconds after which a test gives up; no test waits for them


class Recorded:
    """Implements `foundation.ports.DecisionRecorder` in memory. With `refuse` nothing is kept."""

    def __init__(self) -> None:
        self.entries: list[DecisionEntry] = []
        self.refuse = False

    def record(self, entry: DecisionEntry) -> None:
        self.entries.append(entry)

    def flush(self, entry: DecisionEntry) -> None:
        if self.refuse and entry.critical:
            raise Fault(Reason.DECISION_UNRECORDED)


class Counted:
    """Implements `gateway.proxy.services.ProxyMetrics`."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, Reason, int]] = []
        self.refused: list[Reason] = []
        self.turned_away: list[Priority] = []
        self.floods: list[Flood] = []
        self.changed = asyncio.Event()

    def answered(
        self, route: str, reason: Reason, status: int, seconds: float, trace: str = "", at: float = 0.0
    ) -> None:
        self.answers.append((route, reason, status))
        self.changed.set()

    def connections(self, open_now: int) -> None:
        pass

    def shed(self, priority: Priority) -> None:
        self.turned_away.append(priority)

    def refused_connection(self, reason: Reason) -> None:
        self.refused.append(reason)
        self.changed.set()

    def flooded(self, flood: Flood) -> None:
        self.floods.append(flood)
        self.changed.set()


@dataclass
class Answered:
    """A response as a client read it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    @property
    def reason(self) -> str:
        return str(json.loads(self.body)["reason"])


class RawClient:
    """A TLS connection that sends what it is told, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.trailers: list[bytes] = []
        """The lines behind the last chunked body."""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, data: bytes, *, method: str = "GET") -> Answered:
        self.send(data)
        return await self.answer(method)

    async def get(self, target: str = "/v1/things", *lines: str) -> Answered:
        return await self.ask(request_bytes("GET", target, *lines))

    async def answer(self, method: str = "GET") -> Answered:
        """The next response; its body by Content-Length, chunks, or the connection's end."""
        status, headers = await self.head()
        found = dict(headers)
        if method == "HEAD" or status in {204, 304} or status < 200:
            body = b""
        elif found.get("transfer-encoding") == "chunked":
            body = b"".join([piece async for piece in self.chunks()])
        else:
            body = await self.reader.readexactly(int(found["content-length"]))
        return Answered(status, headers, body)

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        async with asyncio.timeout(PATIENCE):
            raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw.split("\r\n")[:-2]
        pairs = [line.partition(":") for line in lines]
        return int(first.split(" ")[1]), [(name.lower(), value.strip()) for name, _, value in pairs]

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int((await self.reader.readline()).strip(), 16)
            if size == 0:
                break
            yield (await self.reader.readexactly(size + 2))[:-2]
        self.trailers = []
        while line := (await self.reader.readline())[:-2]:
            self.trailers.append(line)

    async def ended(self) -> bytes:
        """What comes until the connection ends, however it ends."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            async with asyncio.timeout(PATIENCE):
                return await self.reader.read()
        return b""

    async def send_until_full(self, block: bytes, most: int) -> int:
        """Send `block` again and again, until nothing more is taken; the bytes sent, `most` at most."""
        sent = 0
        while sent < most:
            self.send(block)
            sent += len(block)
            try:
                async with asyncio.timeout(0.5):
                    await self.writer.drain()
            except TimeoutError:
                break
        return sent

    def close(self) -> None:
        self.writer.transport.abort()


class Closing(Protocol):
    """A client of whatever protocol."""

    def close(self) -> None: ...


def request_bytes(method: str, target: str, *lines: str, body: bytes = b"") -> bytes:
    head = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


@dataclass
class OwnFiles:
    """Implements `gateway.upstreams.trust.OwnCertificate`."""

    calling: KeyPair
    root: Path
    generation: int = 1


@dataclass
class DataPlane:
    """The parts, the address, and an authority whose clients it takes."""

    folder: Path
    routes: tuple[Route, ...]
    settings: GatewayListenerSettings = field(default_factory=GatewayListenerSettings)
    upstream_settings: UpstreamSettings = field(default_factory=UpstreamSettings)
    http2: Http2Settings = field(default_factory=Http2Settings)

    def __post_init__(self) -> None:
        self.redecided: list[Cut] = []
        self.clock = ManualClock(time.time())
        self.authority = SmallAuthority(self.folder, "fleet")
        self.engine = FakeEngine(cached=True)
        self.store = SnapshotStore()
        self.recorded, self.metrics = Recorded(), Counted()
        ids = DecisionIds(self.clock)
        self.decider = Decider(self.store, self.clock, StalenessSettings(), Obligations(self.clock), ids)
        self.registry = Registry(self.clock, self.redecided.append, self.decider, None, self.store.renewals)
        self.store.listen(self.registry.changed)
        self.store.apply(Heartbeat(self.clock.now() + 10_000, SnapshotNumbers(1, 0, 0, 0)))
        self.know("edge-1")
        self.publish()
        self.server = self.authority.service(GATEWAY, "gateway", HOST)
        self.context = server_context(self.server, client_roots=self.authority.pem, protocols=(HTTP_2, *HTTP_1_1))
        self.assertion_key = AssertionKey.open(self.folder)
        self.own = OwnFiles(self.server, self.authority.root)
        self.upstreams = Upstreams(self.upstream_settings, self.clock, UpstreamTrust(self.clock, self.own))
        self.store.listen(self.upstreams.changed)
        self.upstreams.enforce(self.store.current.policy)
        self.services = ConnectionServices(
            self.settings,
            TRUST_DOMAIN,
            self.clock,
            lambda: self.store.current.policy.routes if self.store.current.policy else None,
            self.decider,
            self.registry,
            Records(self.recorded),
            self.upstreams,
            Assertions(lambda: GATEWAY, self.assertion_key, self.clock),
            self.metrics,
            http2=self.http2,
        )
        self.listener = Listener(lambda: self.context, self.services)
        self.clients: list[Closing] = []

    def know(self, name: str, kind: Kind = Kind.NODE, *, epoch: int = 1) -> None:
        self.store.apply(IdentityChanged(1, record(name, kind=kind, epoch=epoch)))
        self.store.apply(PostureChanged(1, spiffe(name, kind), HARDWARE, self.clock.now() + 100_000))

    def publish(self, *, engine: FakeEngine | None = None, revision: int = 1) -> None:
        self.engine = engine or self.engine
        self.store.publish_policy(PolicyPart(revision, f"digest-{revision}", self.engine, RouteTable(self.routes)))

    def pair(self, name: str = "edge-1", kind: Kind = Kind.NODE, **options: int) -> KeyPair:
        return self.authority.client(str(spiffe(name, kind)), f"client-{name}", **options)

    async def connect(self, pair: KeyPair | None = None, server_name: str = HOST) -> RawClient:
        context = client_context(self.authority.pem, pair=pair or self.pair(), check_hostname=False)
        reader, writer = await asyncio.open_connection(*self.address, ssl=context, server_hostname=server_name)
        client = RawClient(reader, writer)
        self.clients.append(client)
        return client

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the data plane does by itself."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # the data plane tells nobody
                await asyncio.sleep(0.001)  # the data plane tells nobody

    async def advance(self, seconds: float) -> None:
        """Move time on in steps of the sweep, letting everything that is due happen."""
        while seconds > 0:
            self.clock.advance(min(0.25, seconds))
            seconds -= 0.25
            for _ in range(5):
                await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[DataPlane]:
        listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = listening.getsockname()[:2]
        self.listener.start(listening)
        try:
            yield self
        finally:
            for client in self.clients:
                client.close()
            await self.listener.close()
            await self.upstreams.close()
            listening.close()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawUpstream:
    """An upstream that does what the test says: `handler` gets each connection. `dials` counts them, `seen` keeps what
    handlers read by `request`."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler or self.plain
        self.dials = 0
        self.seen: list[bytes] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """The next request's head; and its body, if it has a Content-Length."""
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                head += await reader.readexactly(int(line[15:]))
        self.seen.append(head)
        return head

    async def plain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield Address(*server.sockets[0].getsockname()[:2])
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


def saying(answer: bytes, *, close: bool = False) -> Handler:
    """A handler that answers each request's head with these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            if close:
                return

    return handle


def route(address: Address, name: str = "api", *others: Address, pool: Mapping[str, Any] = {}, **changes: Any) -> Route:
    """A route from everywhere to `address`, and to `others`; `pool` says what else is so of its pool."""
    upstream = replace(Pool(name, (address, *others)), **pool)
    return replace(Route(name, RouteType.HTTP, "*", (), upstream), **changes)


@contextlib.asynccontextmanager
async def gateway_to(
    upstream: RawUpstream, folder: Path, settings: GatewayListenerSettings | None = None, **changes: Any
) -> AsyncIterator[DataPlane]:
    """A data plane with one route to `upstream`."""
    async with upstream.running() as address:
        plane = DataPlane(folder, (route(address, **changes),), settings or GatewayListenerSettings())
        async with plane.running():
            yield plane

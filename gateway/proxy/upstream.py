"""The only place that dials upstreams, and it takes a `Permit`.

Connections are kept per address and lent to one exchange at a time. One is used again only when both messages on it
ended where their framing said, with nothing left over; anything else closes it.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.tls import client_context
from gateway.proxy.http1 import HEAD_END, UNTIL_CLOSE, Body, Limits, Piece, ResponseHead, ResponseReader, body_of
from gateway.proxy.route import targets
from policies.model import Permit
from policies.routes import Address, Route

WRITE_HIGH_WATER = 256 << 10
MAX_INFORMATIONAL = 16


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Section `[gateway.upstreams]`. Numbers are per address and worker; seconds; bytes."""

    max_connections: int = 4096
    max_idle: int = 64
    idle_timeout: float = 30.0
    head_bytes: int = 64 << 10
    fields: int = 256

    @classmethod
    def parse(cls, fields: Fields) -> UpstreamSettings:
        settings = cls(
            max_connections=fields.integer("max_connections", 4096, least=1, most=65536),
            max_idle=fields.integer("max_idle", 64, most=65536),
            idle_timeout=fields.duration("idle_timeout", "30s"),
            head_bytes=fields.size("head_bytes", "64KiB"),
            fields=fields.integer("fields", 256, least=16, most=4096),
        )
        fields.finish()
        return settings


class Sink(Protocol):
    """The exchange that an upstream's connection works for. After `failed`, `broken` or a call with `done` the
    connection has forgotten it."""

    def connected(self, upstream: UpstreamConnection) -> None:
        """A connection is lent, and the request can be written."""

    def failed(self, fault: Fault, *, again: bool) -> None:
        """No answer came. `again`: an idle connection had died, and nothing of an answer was seen."""

    def informational(self, head: ResponseHead) -> None: ...

    def response(self, head: ResponseHead, payload: bytes, done: bool) -> None: ...

    def response_data(self, payload: bytes, done: bool) -> None: ...

    def upgraded(self, head: ResponseHead, data: bytes) -> None:
        """The upstream answered 101; from now on bytes come by `tunnelled`. Raises `Fault` to refuse that."""

    def tunnelled(self, data: bytes) -> None: ...

    def broken(self, fault: Fault) -> None:
        """The answer, or the tunnel, ended before its end."""

    def upstream_full(self) -> None:
        """Stop writing until `upstream_drained`."""

    def upstream_drained(self) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream. `request_done` is set by the exchange once it has written all of its request."""

    __slots__ = (
        "_answering",
        "_body",
        "_held",
        "_informational",
        "_keep",
        "_method",
        "_pool",
        "_reader",
        "_reading_paused",
        "_sink",
        "_transport",
        "_tunnel",
        "idle_since",
        "request_done",
        "used",
    )

    def __init__(self, pool: _Pool, reader: ResponseReader) -> None:
        self._pool = pool
        self._reader = reader
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._tunnel = False
        self._reading_paused = False
        self.idle_since = 0.0
        self.used = False
        self._reset(b"")

    def _reset(self, method: bytes) -> None:
        self._method = method
        self._held = b""
        self._body: Body | None = None
        self._keep = False
        self._informational = 0
        self._answering = False  # a byte of an answer came
        self.request_done = False

    # --- what the exchange calls ------------------------------------------------------------------

    def lend(self, method: bytes, sink: Sink) -> None:
        """Work for `sink`, whose request has this method."""
        self._reset(method)
        self._sink = sink

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        # An answer's last bytes may fill the client's buffer when this connection is the pool's again: the next that it
        # is lent to must be read.
        if self._transport is not None and self._sink is not None and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection and whatever is under way on it."""
        self._sink = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # --- what the event loop calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast(asyncio.Transport, transport)  # uvloop's are not of the class
        stream.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        self._answering = True
        if self._sink is None:
            self.abort()  # an upstream that speaks unasked is out of step
            return
        try:
            self._read(self._sink, data)
        except Fault as fault:
            self._fail(fault)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._pool.closed(self)
        if self._sink is None:
            return
        if self._body is not None and error is None and not self._tunnel and self._body.end():
            sink, self._sink = self._sink, None
            sink.response_data(b"", True)
        else:
            self._fail(Fault(Reason.UPSTREAM_UNREACHABLE, "the upstream closed the connection"))

    def pause_writing(self) -> None:
        if self._sink is not None:
            self._sink.upstream_full()

    def resume_writing(self) -> None:
        if self._sink is not None:
            self._sink.upstream_drained()

    # --- reading a response -------------------------------------------------------------------------

    def _read(self, sink: Sink, data: bytes) -> None:
        if self._tunnel:
            sink.tunnelled(data)
        elif self._body is not None:
            piece = self._body.feed(data)
            if piece.done:
                self._release(piece.rest)
            sink.response_data(piece.payload, piece.done)
        else:
            self._read_head(sink, self._held + data if self._held else data)

    def _read_head(self, sink: Sink, data: bytes) -> None:
        while True:
            end = data.find(HEAD_END) + 4
            if end < 4:
                self._reader.check_partial(data)
                self._held = data
                return
            head, data = self._reader.read(data[:end], self._method), data[end:]
            if head.status >= 200 or head.status == 101:
                break
            self._inform(sink, head)
            if self._sink is not sink:
                return
        self._held = b""
        if head.status == 101:
            sink.upgraded(head, data)
            self._tunnel = True
        else:
            self._begin_body(sink, head, data)

    def _inform(self, sink: Sink, head: ResponseHead) -> None:
        self._informational += 1
        if self._informational > MAX_INFORMATIONAL:
            raise Fault(Reason.UPSTREAM_INVALID, "too many informational responses")
        sink.informational(head)

    def _begin_body(self, sink: Sink, head: ResponseHead, data: bytes) -> None:
        self._keep = head.keep_alive and head.length != UNTIL_CLOSE
        self._body = body = body_of(head.length, Reason.UPSTREAM_INVALID)
        piece = Piece(b"", data, True) if body.done else body.feed(data)
        if piece.done:
            self._release(piece.rest)
        sink.response(head, piece.payload, piece.done)

    def _release(self, rest: bytes) -> None:
        """The response is whole: lend the connection to the next, or close it."""
        self._sink = None
        if not self._keep or rest or not self.request_done or not self.alive:
            self.abort()
            return
        self.resume_reading()
        self._pool.give_back(self)

    def _fail(self, fault: Fault) -> None:
        sink, self._sink = self._sink, None
        self.abort()
        if sink is None:
            return
        if self._body is not None or self._tunnel:
            sink.broken(fault)
        else:
            sink.failed(fault, again=self.used and not self._answering)


@dataclass(slots=True)
class _Pool:
    """The connections to one address."""

    clock: Clock
    settings: UpstreamSettings
    idle: list[UpstreamConnection] = field(default_factory=list)
    all: set[UpstreamConnection] = field(default_factory=set)
    dialling: int = 0

    def take(self) -> UpstreamConnection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.alive:
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        connection.used = True
        if len(self.idle) >= self.settings.max_idle:
            connection.abort()
            return
        connection.idle_since = self.clock.monotonic()
        self.idle.append(connection)

    def opened(self, connection: UpstreamConnection) -> None:
        self.all.add(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        self.all.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def sweep(self, before: float) -> None:
        for connection in [each for each in self.idle if each.idle_since < before]:
            self.idle.remove(connection)
            connection.abort()

    @property
    def full(self) -> bool:
        return len(self.all) + self.dialling >= self.settings.max_connections


class Upstreams:
    """All pools of one worker."""

    def __init__(self, settings: UpstreamSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._reader = ResponseReader(Limits(settings.head_bytes, settings.fields))
        self._pools: dict[Address, _Pool] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._dials: set[asyncio.Task[None]] = set()

    def open(self, permit: Permit, route: Route, sink: Sink, *, fresh: bool = False) -> asyncio.Task[None] | None:
        """Lend `sink` a connection for the request that `permit` allows on `route`: at once, or by the dial whose task
        is given back, to be cancelled when the exchange ends. `fresh`: not one that was used before."""
        if not isinstance(permit, Permit):
            raise TypeError("an upstream is dialled by a Permit alone")
        try:
            addresses = targets(permit, route)
        except Fault as fault:
            sink.failed(fault, again=False)
            return None
        method = permit.query.request.method.encode("ascii")
        idle = None if fresh else self._pool(addresses[0]).take()
        if idle is None:
            dial = asyncio.get_running_loop().create_task(self._dial(addresses, route, method, sink))
            self._dials.add(dial)
            dial.add_done_callback(self._dials.discard)
            return dial
        idle.lend(method, sink)
        sink.connected(idle)
        return None

    def sweep(self) -> None:
        """Close what was idle for too long, and forget addresses that nobody uses."""
        before = self._clock.monotonic() - self._settings.idle_timeout
        for address, pool in list(self._pools.items()):
            pool.sweep(before)
            if not pool.all and not pool.dialling:
                del self._pools[address]

    async def close(self) -> None:
        """Drop every connection and dial."""
        for dial in list(self._dials):
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for pool in self._pools.values():
            for connection in list(pool.all):
                connection.abort()

    def _pool(self, address: Address) -> _Pool:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = _Pool(self._clock, self._settings)
        return pool

    async def _dial(self, addresses: tuple[Address, ...], route: Route, method: bytes, sink: Sink) -> None:
        fault = Fault(Reason.UPSTREAM_UNREACHABLE)
        for address in addresses:
            try:
                connection = await self._connect(address, route.connect_timeout)
            except Fault as refused:
                fault = refused
                continue
            connection.lend(method, sink)
            sink.connected(connection)
            return
        sink.failed(fault, again=False)

    async def _connect(self, address: Address, seconds: float) -> UpstreamConnection:
        pool = self._pool(address)
        if pool.full:
            raise Fault(Reason.OVERLOADED, "too many connections to the upstream")
        pool.dialling += 1
        try:
            async with asyncio.timeout(seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: UpstreamConnection(pool, self._reader),
                    address.host,
                    address.port,
                    ssl=self._context(address),
                    server_hostname=address.host if address.tls else None,
                )
        except TimeoutError:
            raise Fault(Reason.UPSTREAM_TIMEOUT, "the upstream did not accept in time") from None
        except OSError as error:  # refused, unreachable, unknown; TLS errors are of this class too
            raise Fault(Reason.UPSTREAM_UNREACHABLE, internal=str(error)) from error
        finally:
            pool.dialling -= 1
        return connection

    def _context(self, address: Address) -> ssl.SSLContext | None:
        if not address.tls:
            return None
        context = self._contexts.get(address.ca_file)
        if context is None:
            context = self._contexts[address.ca_file] = _client_context(address.ca_file)
        return context


def _client_context(ca_file: str) -> ssl.SSLContext:
    if not ca_file:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context
    try:
        return client_context(Path(ca_file).read_bytes())
    except (OSError, Fault) as error:  # callers need not know our files
        raise Fault(Reason.UPSTREAM_UNREACHABLE, internal=f"{ca_file}: {error}") from error

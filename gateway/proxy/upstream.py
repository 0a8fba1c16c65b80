"""The only place that dials upstreams, and it takes a `Permit`.

Connections are kept per address and lent to one exchange at a time (`upstream_connection`).
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.tls import client_context
from gateway.proxy.http1 import Limits, ResponseReader
from gateway.proxy.route import targets
from gateway.proxy.upstream_connection import Sink, UpstreamConnection
from policies.model import Permit
from policies.routes import Address, Route


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


@dataclass(slots=True)
class _Pool:
    """The connections to one address."""

    address: Address
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
            pool = self._pools[address] = _Pool(address, self._clock, self._settings)
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

"""The only place that dials upstreams, and it takes a `Permit`, or a `Probe` for a health check.

Laws held here:
- no connection is opened but for a request that a `Permit` allows, to an address of the pool that the enforced revision
  names, or for a `Probe` of such a pool;
- what an upstream's certificate must show is checked before a byte of a request is written;
- a request is never waited for in a queue: there is a connection, a dial, or a refusal.

Connections are kept by pool and address (`gateway.upstreams.pool`), and lent to one exchange at a time
(`upstream_connection`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.proxy_protocol import LOCAL, Addresses, proxy_header
from gateway.proxy.http1 import Limits, ResponseReader
from gateway.proxy.route import pool_of
from gateway.proxy.upstream_connection import Sink, UpstreamConnection
from gateway.proxy.upstream_probe import ProbeSink
from gateway.snapshot import PolicyPart, Snapshot, Touched
from gateway.upstreams.answers import acceptable, refresh_after
from gateway.upstreams.budget import Failure
from gateway.upstreams.endpoint import Endpoint, Lane
from gateway.upstreams.pool import LivePool, Repeats
from gateway.upstreams.probe import Probe, probes_of
from gateway.upstreams.resolve import DnsResolver, Resolver, is_address
from gateway.upstreams.telling import Overview, overview
from gateway.upstreams.trust import UpstreamTrust, check_spiffe_id
from policies.model import Permit
from policies.routes import Route

LOOKUP_AGAIN = 2.0  # seconds after a look-up that failed
MAX_PROBES = 64  # health checks under way at a time
Source = tuple[str, int] | None
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Section `[gateway.upstreams]`. Numbers are per address and worker; seconds; bytes. `max_age`: an older connection
    is not lent again, so that certificates and addresses are checked anew. `dns`: servers for pools that are names,
    `address` or `address:port`; the system's when empty."""

    max_connections: int = 4096
    max_idle: int = 64
    idle_timeout: float = 30.0
    max_age: float = 3600.0
    dns: tuple[str, ...] = ()
    head_bytes: int = 64 << 10
    fields: int = 256

    @classmethod
    def parse(cls, fields: Fields) -> UpstreamSettings:
        settings = cls(
            max_connections=fields.integer("max_connections", 4096, least=1, most=65536),
            max_idle=fields.integer("max_idle", 64, most=65536),
            idle_timeout=fields.duration("idle_timeout", "30s"),
            max_age=fields.duration("max_age", "1h"),
            dns=_servers(fields),
            head_bytes=fields.size("head_bytes", "64KiB"),
            fields=fields.integer("fields", 256, least=16, most=4096),
        )
        fields.finish()
        return settings


def _servers(fields: Fields) -> tuple[str, ...]:
    servers = fields.texts("dns", (), most=8)
    for server in servers:
        host, port = server.split(":") if server.count(":") == 1 else (server, "53")
        if not is_address(host) or not port.isdecimal():
            raise fields.fault("dns", "expected addresses, or addresses with their ports")
    return servers


class Upstreams:
    """All pools of one worker."""

    def __init__(
        self,
        settings: UpstreamSettings,
        clock: Clock,
        trust: UpstreamTrust | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._trust = trust or UpstreamTrust(clock)
        self._resolver = resolver or DnsResolver(settings.dns)
        self._reader = ResponseReader(Limits(settings.head_bytes, settings.fields))
        self._pools: dict[str, LivePool] = {}
        self._probes: dict[str, Probe] = {}
        self._leaving: set[Endpoint] = set()  # no pool's any more, while their last exchanges end
        self._dials: set[asyncio.Task[None]] = set()
        self._probing = 0

    # --- what a revision names --------------------------------------------------------------------------

    def changed(self, snapshot: Snapshot, touched: Touched) -> None:
        """A `gateway.snapshot.Listener`."""
        for identity in touched.identities:
            if identity in snapshot.revoked_identities:
                self._disown(identity)
        if touched.policy is not None and snapshot.policy is not None:
            self.enforce(snapshot.policy)

    def _disown(self, identity: SpiffeId) -> None:
        """Nobody is this identity any more: what it authenticated and left idle ends."""
        for live in self._pools.values():
            if not live.is_shared:
                for endpoint in live.endpoints.values():
                    endpoint.close_lanes(identity)

    def enforce(self, enforced: PolicyPart) -> None:
        """From now on these pools are the ones there are. Nothing new goes elsewhere; what is under way there may have
        to end, which the registry sees to."""
        pools = enforced.routes.pools
        for name in self._pools.keys() - pools.keys():
            self._leaving.update(self._pools.pop(name).retire())
        for name, pool in pools.items():
            known = self._pools.get(name)
            if known is None:
                self._pools[name] = LivePool(pool, self._settings, self._clock)
            elif known.value != pool:
                self._leaving.update(known.become(pool))
        self._probes = probes_of(enforced)

    # --- what an exchange asks ---------------------------------------------------------------------------

    def open(
        self, permit: Permit, route: Route, sink: Sink, repeats: Repeats | None = None, *, fresh: bool = False
    ) -> asyncio.Task[None] | None:
        """Lend `sink` a connection for the request that `permit` allows on `route`: at once, or by the dial whose task
        is given back, to be cancelled when the exchange ends. `repeats`: it is sent once more, to another address where
        there is one. `fresh`: by a connection that was not used before."""
        if not isinstance(permit, Permit):
            raise TypeError("an upstream is dialled by a Permit alone")
        try:
            live = self._pools.get(pool_of(permit, route).name)
            if live is None:
                raise Fault(Reason.ROUTE_UNKNOWN, "the route's upstream is gone")
            if not live.serving and live.is_unknown:
                return self._own(self._open_once_found(live, permit, route, sink))
            caller = permit.query.identity.id
            endpoint = live.pick(caller) if repeats is None else live.pick(caller, repeats.failed)
            lane = None if live.is_shared else live.lane(caller, sink.source)
            if live.is_guarded:
                live.admit(dials=fresh or not endpoint.has_idle(lane))
            idle = None if fresh else endpoint.take(lane)
        except Fault as fault:
            sink.failed(fault, Failure.FINAL, None)
            return None
        method = permit.query.request.method.encode("ascii")
        if idle is None:
            return self._own(self._dial(endpoint, lane, permit, route.connect_timeout, method, sink))
        connection: UpstreamConnection = idle  # type: ignore[assignment]  # a pool gives back what was made for it
        connection.lend(method, sink)
        sink.connected(connection)
        return None

    # --- what time does ------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Close what was idle for too long; begin the health checks and look-ups that are due."""
        now = self._clock.monotonic()
        before = now - self._settings.idle_timeout
        self._leaving = {endpoint for endpoint in self._leaving if endpoint.is_used}
        for name, live in self._pools.items():
            for endpoint in live.endpoints.values():
                endpoint.close_idle(before)
            live.tend(now)
            if live.value.dns is not None and live.next_lookup <= now:
                self._begin_lookup(live)
            probe = self._probes.get(name)
            if probe is not None:
                self._check(live, probe, now)

    async def close(self) -> None:
        """Drop every connection and dial."""
        for dial in list(self._dials):
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for endpoint in [*self._leaving, *(each for live in self._pools.values() for each in live.endpoints.values())]:
            for connection in list(endpoint.connections):
                connection.abort()
        self._resolver.close()

    def overview(self) -> Overview:
        """What an operator may know of the pools."""
        return overview(self._pools.values())

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        return task

    # --- health and names ----------------------------------------------------------------------------------

    def _check(self, live: LivePool, probe: Probe, now: float) -> None:
        for endpoint in live.endpoints.values():
            if endpoint.next_check <= now and not endpoint.checking and self._probing < MAX_PROBES:
                endpoint.checking = True
                self._probing += 1
                self._own(self._probe(endpoint, probe))

    async def _probe(self, endpoint: Endpoint, probe: Probe) -> None:
        try:
            failure = await self._examine(endpoint, probe)
        finally:
            self._probing -= 1
            endpoint.checking = False
            endpoint.next_check = self._clock.monotonic() + probe.check.interval
        if self._probes.get(probe.pool.name) is probe:  # no other revision asks otherwise meanwhile
            endpoint.pool.checked(endpoint, probe.check, failure)

    async def _examine(self, endpoint: Endpoint, probe: Probe) -> str:
        """Why the address fails the check; empty when it passes."""
        sink = ProbeSink()
        try:
            async with asyncio.timeout(probe.check.timeout):
                connection = await self._connect(endpoint, None, probe, probe.check.timeout, None)
                try:
                    request = probe.request(endpoint.name)
                    if not request:
                        return ""
                    connection.lend(b"GET", sink)
                    connection.request_done = True
                    connection.write(request)
                    return await sink.outcome
                finally:
                    connection.abort()
        except TimeoutError:
            return "no answer in time"
        except Fault as fault:
            return fault.reason.meaning

    def _begin_lookup(self, live: LivePool) -> None:
        if not live.looking_up:
            live.looking_up = True
            self._own(self._look_up(live))

    async def _look_up(self, live: LivePool) -> None:
        """Ask DNS for the pool's addresses. What fails is asked again soon, and the addresses that were known stay."""
        pool = live.value
        seconds = LOOKUP_AGAIN
        try:
            found = await self._resolver.look_up(pool)
            if live.value is pool:
                self._leaving.update(live.set_addresses(found.addresses, found.places))
                seconds = refresh_after(found.ttl, pool.refresh)
        except Fault as fault:
            _LOG.warning("upstream %s: %s (%s)", pool.name, fault, fault.internal)
            live.lookup_failure = fault.reason
        else:
            live.lookup_failure = None
        finally:
            live.looking_up = False
            live.next_lookup = self._clock.monotonic() + seconds
            if live.value.dns == pool.dns:
                live.looked_up.set()

    async def _open_once_found(self, live: LivePool, permit: Permit, route: Route, sink: Sink) -> None:
        """The first requests to a pool that is a name wait until it is known, for as long as for a dial."""
        self._begin_lookup(live)
        try:
            async with asyncio.timeout(route.connect_timeout):
                await live.looked_up.wait()
        except TimeoutError:
            sink.failed(Fault(Reason.UPSTREAM_TIMEOUT, "DNS did not answer in time"), Failure.FINAL, None)
            return
        dial = self.open(permit, route, sink)
        if dial is not None:
            await dial

    # --- dialling --------------------------------------------------------------------------------------------

    async def _dial(
        self, endpoint: Endpoint, lane: Lane, permit: Permit, seconds: float, method: bytes, sink: Sink
    ) -> None:
        live = endpoint.pool
        live.pending += 1
        try:
            connection = await self._connect(endpoint, lane, permit, seconds, sink.source)
        except Fault as fault:
            failed: Fault | None = fault
        else:
            failed = None
        finally:
            live.pending -= 1
        if failed is not None:
            sink.failed(failed, Failure.UNREACHED, endpoint)
            return
        connection.lend(method, sink)
        sink.connected(connection)

    async def _connect(
        self, endpoint: Endpoint, lane: Lane, permission: Permit | Probe, seconds: float, source: Source
    ) -> UpstreamConnection:
        """A new, proven connection. Raises `Fault`."""
        if not isinstance(permission, Permit | Probe):
            raise TypeError("an upstream is dialled by a Permit or a Probe alone")
        if endpoint.is_full:
            raise Fault(Reason.OVERLOADED, "too many connections to the upstream")
        endpoint.dialling += 1
        try:
            async with asyncio.timeout(seconds):
                connection = await self._reach(endpoint, permission, lane, source)
        except TimeoutError:
            fault = Fault(Reason.UPSTREAM_TIMEOUT, "the upstream did not accept in time")
        except ssl.SSLCertVerificationError as error:
            fault = Fault(Reason.UPSTREAM_UNTRUSTED, internal=str(error))
        except OSError as error:  # refused, unreachable, unknown; other TLS errors are of this class too
            fault = Fault(Reason.UPSTREAM_UNREACHABLE, internal=str(error))
        except Fault as error:
            fault = error
        else:
            return connection
        finally:
            endpoint.dialling -= 1
        name = endpoint.pool.value.name
        _LOG.info("upstream %s: %s cannot be used: %s (%s)", name, endpoint.address, fault, fault.internal)
        if isinstance(permission, Permit):
            endpoint.pool.counted["dial_failures"] += 1
            endpoint.failed()
        raise fault

    async def _reach(
        self, endpoint: Endpoint, permission: Permit | Probe, lane: Lane, source: Source
    ) -> UpstreamConnection:
        def made() -> UpstreamConnection:
            return UpstreamConnection(endpoint, lane, self._reader, shows=isinstance(permission, Permit))

        error: OSError = OSError("no address")
        for host in await self._hosts(endpoint):
            try:
                return await self._handshake(endpoint, host, made, source)
            except OSError as refused:
                error = refused
        raise error

    async def _hosts(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The IP addresses behind an address, which may be a name. Names are judged anew with every dial: what they
        lead to may have changed since (DNS rebinding)."""
        host = endpoint.address.host
        if is_address(host):
            return (host,)
        answers = await self._resolver.system(host)
        kept = acceptable(host, answers, endpoint.pool.value.networks)
        if not kept:
            raise Fault(Reason.UPSTREAM_ADDRESS_REFUSED, internal=f"{host} leads to {', '.join(answers[:4])}")
        return kept

    async def _handshake(
        self, endpoint: Endpoint, host: str, made: Callable[[], UpstreamConnection], source: Source
    ) -> UpstreamConnection:
        pool, loop = endpoint.pool.value, asyncio.get_running_loop()
        tls, port = pool.tls, endpoint.address.port
        context = None if tls is None else self._trust.context(tls)
        name = None if tls is None else tls.server_name or endpoint.name
        if pool.proxy_protocol:
            opened = await _announced(host, port, source)
            _, connection = await loop.create_connection(made, sock=opened, ssl=context, server_hostname=name)
        else:
            _, connection = await loop.create_connection(made, host, port, ssl=context, server_hostname=name)
        if tls is not None and tls.spiffe_id:
            try:
                check_spiffe_id(connection.certificate, tls.spiffe_id)
            except Fault:
                connection.abort()
                raise
        return connection


async def _announced(host: str, port: int, source: Source) -> socket.socket:
    """A connection that began with PROXY v2: whose it is, or that it is our own. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        await loop.sock_connect(opened, (host, port))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        header = LOCAL if source is None else proxy_header(Addresses.between(source, opened.getpeername()[:2]))
        await loop.sock_sendall(opened, header)
    except BaseException:
        opened.close()
        raise
    return opened

"""What a connection needs of the rest of the gateway, given to it once by the orchestrator."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.randomness import RandomBytes
from foundation.reasons import Reason
from foundation.telemetry import SilentSpan
from foundation.trace import TraceContext
from gateway.access.lines import Access
from gateway.proxy.assertion import Assertions
from gateway.proxy.http1 import Limits, RequestReader
from gateway.proxy.http2_budget import Flood, Http2Settings
from gateway.proxy.identify import Peer
from gateway.proxy.overload import Overload, OverloadSettings
from gateway.proxy.record import Records
from gateway.proxy.route import RouteTable
from gateway.proxy.seats import Seats
from gateway.proxy.sources import SourceRates
from gateway.proxy.turns import Turns
from gateway.proxy.upstream import Upstreams
from gateway.streams.registry import Exchange, Registry
from policies.model import CanonicalRequest, Decision, Denial
from policies.routes import Priority, Route


@dataclass(frozen=True, slots=True)
class GatewayListenerSettings:
    """Section `[gateway.listener]`. Times in seconds, sizes in bytes.

    handshakes: connections that have not proven a certificate yet; when there are more, the oldest gives way.
    source_handshakes, source_burst: handshakes that one source address may begin a second, and at once.
    first_byte_timeout: from the handshake to the first request's first byte. header_timeout: from a request's first
    byte to the end of its head. idle_timeout: between requests. body_timeout: without a byte of a body, in either
    direction, while one is owed. request_timeout: from a request's head to its body's last byte, even if it trickles.
    connection_memory, memory: what one connection (of HTTP/2: one for each of its streams), and all of a worker's
    together, may hold in buffers.
    body_bytes: a request's body, whatever its route allows.
    proxy_protocol_from: networks of load balancers that forward connections to us; with any, every connection must come
    from one of them and begin with a PROXY v2 header.
    linger_*: what is still read, and dropped, behind a refusal, so that the client gets to read it.
    """

    host: str = "0.0.0.0"  # noqa: S104  # a gateway faces the fleet; its client-auth regime is the guard
    port: int = 8443
    backlog: int = 1024
    connections: int = 20_000
    handshakes: int = 1_024
    connections_per_identity: int = 256
    source_handshakes: int = 100
    source_burst: int = 1_000
    handshake_timeout: float = 10.0
    first_byte_timeout: float = 30.0
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    body_timeout: float = 60.0
    request_timeout: float = 3_600.0
    linger_timeout: float = 2.0
    linger_bytes: int = 256 << 10
    head_bytes: int = 16 << 10
    fields: int = 100
    target_bytes: int = 8 << 10
    body_bytes: int = 64 << 30
    connection_memory: int = 2 << 20
    memory: int = 1 << 30
    proxy_protocol_from: tuple[str, ...] = ()

    @classmethod
    def parse(cls, fields: Fields) -> GatewayListenerSettings:
        settings = cls(
            host=fields.text("host", "0.0.0.0"),  # noqa: S104  # as above
            port=fields.integer("port", 8443, most=65535),
            backlog=fields.integer("backlog", 1024, least=1, most=65535),
            connections=fields.integer("connections", 20_000, least=1, most=1 << 20),
            handshakes=fields.integer("handshakes", 1_024, least=1, most=1 << 16),
            connections_per_identity=fields.integer("connections_per_identity", 256, least=1, most=1 << 20),
            source_handshakes=fields.integer("source_handshakes", 100, least=1, most=1 << 20),
            source_burst=fields.integer("source_burst", 1_000, least=1, most=1 << 20),
            handshake_timeout=fields.duration("handshake_timeout", "10s"),
            first_byte_timeout=fields.duration("first_byte_timeout", "30s"),
            header_timeout=fields.duration("header_timeout", "10s"),
            idle_timeout=fields.duration("idle_timeout", "75s"),
            body_timeout=fields.duration("body_timeout", "60s"),
            request_timeout=fields.duration("request_timeout", "1h"),
            linger_timeout=fields.duration("linger_timeout", "2s"),
            linger_bytes=fields.size("linger_bytes", "256KiB"),
            head_bytes=fields.size("head_bytes", "16KiB"),
            fields=fields.integer("fields", 100, least=8, most=1024),
            target_bytes=fields.size("target_bytes", "8KiB"),
            body_bytes=fields.size("body_bytes", "64GiB"),
            connection_memory=fields.size("connection_memory", "2MiB"),
            memory=fields.size("memory", "1GiB"),
            proxy_protocol_from=networks(fields, "proxy_protocol_from"),
        )
        fields.finish()
        return settings

    @property
    def limits(self) -> Limits:
        return Limits(self.head_bytes, self.fields, self.target_bytes)


def networks(fields: Fields, name: str) -> tuple[str, ...]:
    """The list of IP networks in the field `name`. Raises `Fault`."""
    found = fields.texts(name, (), most=64)
    for each in found:
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise fields.fault(name, f"{each[:64]!r} is not a network such as 10.0.0.0/8") from None
    return found


class ProxyMetrics(Protocol):
    """Rate, errors and durations. Labels are routes' names and reasons' codes, nothing that a client chooses."""

    def answered(
        self, route: str, reason: Reason, status: int, seconds: float, trace: str = "", at: float = 0.0
    ) -> None:
        """An exchange ended. `route` is empty when none was matched; `status` 0 when no answer went out; `trace` is the
        ID of a recorded trace, of which `at` is the end (seconds since the Unix epoch)."""

    def connections(self, open_now: int) -> None: ...

    def refused_connection(self, reason: Reason) -> None:
        """A connection was refused, or ended for what it holds."""

    def shed(self, priority: Priority) -> None:
        """A request of a route of this priority was turned away, so that others are served."""

    def flooded(self, flood: Flood) -> None:
        """An HTTP/2 connection ended because its client overran a budget."""


class NoMetrics:
    """Counts nothing."""

    def answered(
        self, route: str, reason: Reason, status: int, seconds: float, trace: str = "", at: float = 0.0
    ) -> None:
        pass

    def connections(self, open_now: int) -> None:
        pass

    def refused_connection(self, reason: Reason) -> None:
        pass

    def shed(self, priority: Priority) -> None:
        pass

    def flooded(self, flood: Flood) -> None:
        pass


class ProxySpan(Protocol):
    """A span of a trace, as `foundation.telemetry` makes them. `recorded` says whether anybody will look."""

    recorded: bool
    context: TraceContext

    def set(self, name: str, value: str | bool | int | float) -> None: ...

    def stage(self, name: str) -> None: ...

    def end(self, error: str = "") -> None: ...


def silent_span(name: str, parent: TraceContext | None) -> ProxySpan:
    """A span that nobody records."""
    return SilentSpan(parent or TraceContext.begin(RandomBytes()))


ConnectionMaker = Callable[["ConnectionServices", set[Any]], Any]
"""Makes the protocol of a connection (`gateway.proxy.connection.ClientConnection`) among its siblings."""


class DecisionMaker(Protocol):
    """`gateway.proxy.decide.Decider`, as connections use it."""

    def decide_now(
        self, peer: Peer, request: CanonicalRequest, route: Route, exchange: Exchange
    ) -> Decision | None: ...

    async def decide(self, peer: Peer, request: CanonicalRequest, route: Route, exchange: Exchange) -> Decision: ...

    def refuse(self, reason: Reason, facts: Mapping[str, Any] = ...) -> Denial: ...


@dataclass(slots=True)
class ConnectionServices:
    """One worker's parts. `routes` gives the table of the enforced revision, or None when none is loaded."""

    settings: GatewayListenerSettings
    trust_domain: str
    clock: Clock
    routes: Callable[[], RouteTable | None]
    decider: DecisionMaker
    registry: Registry
    records: Records
    upstreams: Upstreams
    assertions: Assertions
    metrics: ProxyMetrics = field(default_factory=NoMetrics)
    spans: Callable[[str, TraceContext | None], ProxySpan] = silent_span
    access: Callable[[Access], None] | None = None  # takes what the access log shows of a request that ended
    overload: Overload = field(default_factory=lambda: Overload(OverloadSettings()))
    http2: Http2Settings = field(default_factory=Http2Settings)
    seats: Seats = field(default_factory=lambda: Seats.private(1024))
    protocols: Mapping[str, ConnectionMaker] = field(default_factory=dict)  # by what ALPN agreed on, beside HTTP
    draining: bool = False
    requests: RequestReader = field(init=False)
    sources: SourceRates = field(init=False)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.requests = RequestReader(settings.limits)
        self.sources = SourceRates(settings.source_handshakes, settings.source_burst)
        self.turns = Turns(self.clock)

    def admit(self, route: Route) -> None:
        """Raises `Fault(OVERLOADED)` where what `route` carries is turned away, so that others are served."""
        if not self.overload.admits(route.priority, self.registry.open_count, self.turns.waited()):
            self.metrics.shed(route.priority)
            raise Fault(Reason.OVERLOADED)

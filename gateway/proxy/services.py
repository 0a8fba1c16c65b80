"""What a connection needs of the rest of the gateway, given to it once by the orchestrator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from foundation.clock import Clock
from foundation.fields import Fields
from foundation.randomness import RandomBytes
from foundation.reasons import Reason
from foundation.telemetry import SilentSpan
from foundation.trace import TraceContext
from gateway.proxy.http1 import Limits, RequestReader
from gateway.proxy.identify import Peer
from gateway.proxy.record import Records
from gateway.proxy.route import RouteTable
from gateway.proxy.upstream import Upstreams
from gateway.streams.registry import Exchange, Registry
from policies.model import CanonicalRequest, Decision, Denial
from policies.routes import Route


@dataclass(frozen=True, slots=True)
class GatewayListenerSettings:
    """Section `[gateway.listener]`. Times in seconds, sizes in bytes.

    handshakes: connections that have not proven a certificate yet; when there are more, the oldest gives way.
    header_timeout: from a request's first byte to the end of its head. idle_timeout: between requests, and from the
    handshake to the first. body_timeout: without a byte of a body, in either direction, while one is owed.
    linger_*: what is still read, and dropped, behind a refusal, so that the client gets to read it.
    """

    host: str = "0.0.0.0"  # noqa: S104  # a gateway faces the fleet; its client-auth regime is the guard
    port: int = 8443
    backlog: int = 1024
    connections: int = 20_000
    handshakes: int = 1_024
    connections_per_identity: int = 256
    handshake_timeout: float = 10.0
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    body_timeout: float = 60.0
    linger_timeout: float = 2.0
    linger_bytes: int = 256 << 10
    head_bytes: int = 16 << 10
    fields: int = 100
    target_bytes: int = 8 << 10

    @classmethod
    def parse(cls, fields: Fields) -> GatewayListenerSettings:
        settings = cls(
            host=fields.text("host", "0.0.0.0"),  # noqa: S104  # as above
            port=fields.integer("port", 8443, most=65535),
            backlog=fields.integer("backlog", 1024, least=1, most=65535),
            connections=fields.integer("connections", 20_000, least=1, most=1 << 20),
            handshakes=fields.integer("handshakes", 1_024, least=1, most=1 << 16),
            connections_per_identity=fields.integer("connections_per_identity", 256, least=1, most=1 << 20),
            handshake_timeout=fields.duration("handshake_timeout", "10s"),
            header_timeout=fields.duration("header_timeout", "10s"),
            idle_timeout=fields.duration("idle_timeout", "75s"),
            body_timeout=fields.duration("body_timeout", "60s"),
            linger_timeout=fields.duration("linger_timeout", "2s"),
            linger_bytes=fields.size("linger_bytes", "256KiB"),
            head_bytes=fields.size("head_bytes", "16KiB"),
            fields=fields.integer("fields", 100, least=8, most=1024),
            target_bytes=fields.size("target_bytes", "8KiB"),
        )
        fields.finish()
        return settings

    @property
    def limits(self) -> Limits:
        return Limits(self.head_bytes, self.fields, self.target_bytes)


class ProxyMetrics(Protocol):
    """Rate, errors and durations. Labels are routes' names and reasons' codes, nothing that a client chooses."""

    def answered(self, route: str, reason: Reason, status: int, seconds: float) -> None:
        """An exchange ended. `route` is empty when none was matched; `status` 0 when no answer went out."""

    def connections(self, open_now: int) -> None: ...

    def refused_connection(self, reason: Reason) -> None: ...


class NoMetrics:
    """Counts nothing."""

    def answered(self, route: str, reason: Reason, status: int, seconds: float) -> None:
        pass

    def connections(self, open_now: int) -> None:
        pass

    def refused_connection(self, reason: Reason) -> None:
        pass


class ProxySpan(Protocol):
    """A span of a trace, as `foundation.telemetry` makes them. `recorded` says whether anybody will look."""

    recorded: bool
    context: TraceContext

    def set(self, name: str, value: str | bool | int | float) -> None: ...

    def end(self, error: str = "") -> None: ...


def silent_span(name: str, parent: TraceContext | None) -> ProxySpan:
    """A span that nobody records."""
    return SilentSpan(parent or TraceContext.begin(RandomBytes()))


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
    metrics: ProxyMetrics = field(default_factory=NoMetrics)
    spans: Callable[[str, TraceContext | None], ProxySpan] = silent_span
    draining: bool = False
    requests: RequestReader = field(init=False)

    def __post_init__(self) -> None:
        self.requests = RequestReader(self.settings.limits)

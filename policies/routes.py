"""What a route is: a named way from callers to a target, as the security team wrote it in the workspace.

The gateway matches requests to routes and dials upstreams by these values; policy decides by the route's name and by
the requirements that `policies.lifecycle.workspace` compiles into data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from policies.upstreams import Destination, Pool


class RouteType(StrEnum):
    """`http`: to an upstream pool. `stream`: to a service on a node, through the broker."""

    HTTP = "http"
    STREAM = "stream"


class RouteClass(StrEnum):
    """How a route behaves when facts are old or records cannot be kept: `critical` fails closed at once, `standard`
    after the stale bound, `tolerant` after the expired bound."""

    CRITICAL = "critical"
    STANDARD = "standard"
    TOLERANT = "tolerant"


class Priority(StrEnum):
    """What is served when not everything can be: `low` is turned away first, `critical` last."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Route:
    """`host` is matched in lower case, `*` matches any; `prefix` is whole decoded path segments. The longest prefix
    wins, an exact host before `*`. Times in seconds, sizes in bytes. Nothing is rewritten: what is authorised is
    forwarded. `pool` is where an `http` route leads. `retry_503`: an answer of 503 counts as none to what may be tried
    again. Of the times, `idle_timeout` is the longest pause within an answer or a tunnel, and `timeout` the whole of an
    exchange, streams too; 0 is no bound."""

    name: str
    type: RouteType
    host: str
    prefix: tuple[str, ...]
    pool: Pool | None
    route_class: RouteClass = RouteClass.STANDARD
    upgrades: tuple[str, ...] = ()
    max_body: int = 1 << 40
    connect_timeout: float = 5.0
    response_timeout: float = 60.0
    idle_timeout: float = 0.0
    timeout: float = 0.0
    retry_503: bool = False
    service: str = ""  # of a stream route: the service's name on the target node
    protocol: str = ""  # of a stream route: `tcp`, `udp`, or `http`, of which each request is decided

    priority: Priority = Priority.NORMAL

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """Everywhere that an `http` route leads."""
        return () if self.pool is None else self.pool.destinations

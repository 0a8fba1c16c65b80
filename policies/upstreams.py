"""What an upstream pool is: the addresses of one service, and how they are found, proven, watched and spared.

Values alone, as the security team wrote them in the workspace (`policies.lifecycle.upstreams_yaml`). Times are seconds,
shares are percent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Address:
    """Where to dial. `host` is a name, or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Discovery(StrEnum):
    """How a pool's addresses are found: `static`, as listed; `dns`, each address of one name; `srv`, as the SRV records
    of one name say (RFC 2782)."""

    STATIC = "static"
    DNS = "dns"
    SRV = "srv"


class IdentityHeader(StrEnum):
    """How an upstream is told who asks: our own headers, Envoy's X-Forwarded-Client-Cert, a signed assertion (JWT)."""

    SALLYPORT = "sallyport"
    XFCC = "xfcc"
    ASSERTION = "assertion"


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How an upstream proves itself, and whether we do. `ca_file` is PEM on the gateway, the system's roots when empty;
    `fleet`: the fleet's own root instead. `server_name` is asked for and must be in the certificate (by default the
    address's host); with `spiffe_id` the certificate must name that ID instead (X509-SVID §4). `client_certificate`:
    the gateway proves its own certificate."""

    ca_file: str = ""
    fleet: bool = False
    server_name: str = ""
    spiffe_id: str = ""
    client_certificate: bool = False


class Destination(NamedTuple):
    """Where policy leads: an address, or the name behind which DNS has addresses, and how it proves itself."""

    address: Address
    tls: UpstreamTls | None


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A GET of `path` that must answer 200 to 299; a connection alone when `path` is empty. `unhealthy` failures in a
    row take an address out, `healthy` successes bring it back."""

    path: str = ""
    host: str = ""
    interval: float = 5.0
    timeout: float = 2.0
    healthy: int = 2
    unhealthy: int = 3


@dataclass(frozen=True, slots=True)
class Outlier:
    """When an address is ejected for what its exchanges showed. `consecutive_failures`: dials that fail and answers
    that break off or do not come. What a caller may be able to provoke counts only when asked for:
    `consecutive_5xx` answers, or `failure_percent` of at least `volume` answers in an `interval`. Zero is never.

    The first ejection lasts for `ejection`, each further one as much longer, up to `longest`. At most `share` percent
    of a pool's addresses are ejected at a time."""

    consecutive_failures: int = 5
    consecutive_5xx: int = 0
    failure_percent: int = 0
    volume: int = 50
    interval: float = 10.0
    ejection: float = 30.0
    longest: float = 300.0
    share: int = 50


@dataclass(frozen=True, slots=True)
class Breaker:
    """The most that may be under way to a pool, for each worker: exchanges, and exchanges that wait for a dial. Zero is
    no bound of the pool's own. `connections` is for each address; zero leaves it to the gateway's setting."""

    requests: int = 0
    pending: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Retries:
    """`tries` after the first, at other addresses where there are any. Those under way at a time are at most `percent`
    of the pool's exchanges, but `least` are always allowed."""

    tries: int = 2
    percent: int = 20
    least: int = 3


@dataclass(frozen=True, slots=True)
class Pool:
    """One service's addresses. A `name` means one pool within a revision; a route that lists addresses itself has a
    pool of its own name.

    dns: the name that is looked up, with its port, or the SRV name (whose port is 0). `refresh`: the longest time
    between look-ups; a record's TTL may shorten it. networks: CIDR blocks that looked up addresses must lie in.
    slow_start: how long an address that comes (back) takes to its full share. panic: with fewer percent of the
    addresses in service, all are used; 0 is never. per_identity: the upstream authenticates connections, so none is
    lent to two identities. proxy_protocol: each connection begins with PROXY v2, and is one client address's.
    """

    name: str
    addresses: tuple[Address, ...] = ()
    discovery: Discovery = Discovery.STATIC
    dns: Address | None = None
    refresh: float = 30.0
    networks: tuple[str, ...] = ()
    tls: UpstreamTls | None = None
    health: HealthCheck | None = None
    outlier: Outlier = field(default_factory=Outlier)
    breaker: Breaker = field(default_factory=Breaker)
    retries: Retries = field(default_factory=Retries)
    slow_start: float = 0.0
    panic: int = 50
    per_identity: bool = False
    proxy_protocol: bool = False
    identity: tuple[IdentityHeader, ...] = (IdentityHeader.SALLYPORT,)

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """Everywhere that the pool leads. A pool that is a name leads to that one name, whatever DNS says behind it."""
        places = self.addresses if self.dns is None else (self.dns,)
        return tuple(Destination(place, self.tls) for place in places)

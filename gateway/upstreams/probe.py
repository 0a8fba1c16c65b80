"""Permission to ask an upstream for its health. It is to a health check what a `Permit` is to a request.

Laws held here:
- a `Probe` comes of a pool in the enforced revision, and of nothing else: who signed the revision permitted it;
- it carries nothing of any caller: what is sent is the pool's path and our own name, and the answer goes to the health
  of the address alone.
"""

from __future__ import annotations

from gateway.snapshot import PolicyPart
from policies.upstreams import HealthCheck, Pool

_SEAL = object()


class Probe:
    """Permission to check the addresses of `pool`. Only `probes_of` makes one."""

    __slots__ = ("check", "pool")

    def __init__(self, seal: object, pool: Pool, check: HealthCheck) -> None:
        if seal is not _SEAL:
            raise TypeError("a Probe is made by gateway.upstreams.probe.probes_of alone")
        self.pool = pool
        self.check = check

    def request(self, host: str) -> bytes:
        """What is sent to an address that is called `host`; nothing when a connection is enough."""
        if not self.check.path:
            return b""
        lines = (f"GET {self.check.path} HTTP/1.1", f"host: {self.check.host or host}", "user-agent: sallyport-health")
        return "\r\n".join((*lines, "connection: close", "", "")).encode("ascii")


def probes_of(enforced: PolicyPart) -> dict[str, Probe]:
    """For each pool of the enforced revision that has a health check, by its name, permission to make it."""
    pools = enforced.routes.pools.items()
    return {name: Probe(_SEAL, pool, pool.health) for name, pool in pools if pool.health is not None}

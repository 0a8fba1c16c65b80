"""Names to addresses: by the system for a name that stands among a pool's addresses, by DNS for a pool that is a name.

DNS is asked by c-ares (aiodns), which tells each record's TTL. What answers is judged in `answers` before anything is
dialled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.upstreams.answers import MAX_ANSWERS, acceptable
from policies.upstreams import Address, Discovery, Pool

LOOKUP_SECONDS = 5.0
MAX_TARGETS = 32  # of an SRV answer: each is one more look-up


class Place(NamedTuple):
    """Where an address stands among the others of its service (RFC 2782)."""

    priority: int
    weight: int


class Found(NamedTuple):
    """The addresses that DNS named, each with what it is called, and for how many seconds that holds. `places` are
    those of a service's addresses."""

    addresses: Mapping[Address, str]
    ttl: float
    places: Mapping[Address, Place] = MappingProxyType({})


class Resolver(Protocol):
    """Looks names up."""

    async def system(self, name: str) -> Sequence[str]:
        """The IP addresses of `name`, as this machine sees it. Raises `OSError`."""
        ...

    async def look_up(self, pool: Pool) -> Found:
        """The addresses of a pool that is a name. Raises `Fault(UPSTREAM_UNREACHABLE | UPSTREAM_ADDRESS_REFUSED)`."""
        ...

    def close(self) -> None: ...


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, which needs no look-up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class DnsResolver:
    """Implements `Resolver`. `servers` are `address` or `address:port`; those of the system when empty."""

    def __init__(self, servers: Sequence[str] = ()) -> None:
        self._servers = tuple(servers)
        self._dns: Any = None

    async def system(self, name: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return [str(each[4][0]) for each in found]

    async def look_up(self, pool: Pool) -> Found:
        if pool.dns is None:
            raise Fault(Reason.UPSTREAM_UNREACHABLE, internal="the pool has no name")
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                if pool.discovery is Discovery.SRV:
                    return await self._service(pool.dns.host, pool.networks)
                return await self._name(pool.dns.host, pool.dns.port, pool.networks)
        except TimeoutError:
            raise Fault(Reason.UPSTREAM_UNREACHABLE, internal=f"DNS did not answer for {pool.dns.host}") from None

    def close(self) -> None:
        if self._dns is not None:
            self._dns.cancel()
            self._dns = None

    async def _name(self, name: str, port: int, networks: tuple[str, ...]) -> Found:
        answers: list[str] = []
        ttls: list[float] = []
        for kind in ("A", "AAAA"):
            records = await self._ask(name, kind)
            answers += [record.data.addr for record in records]
            ttls += [float(record.ttl) for record in records]
        if not answers:
            raise Fault(Reason.UPSTREAM_UNREACHABLE, internal=f"DNS has no address for {name}")
        kept = acceptable(name, answers, networks)
        if not kept:
            raise Fault(Reason.UPSTREAM_ADDRESS_REFUSED, internal=f"{name} leads to {', '.join(answers[:4])}")
        return Found({Address(each, port): name for each in kept}, min(ttls))

    async def _service(self, name: str, networks: tuple[str, ...]) -> Found:
        """The targets, the best priority first (RFC 2782)."""
        records = await self._ask(name, "SRV")
        if not records:
            raise Fault(Reason.UPSTREAM_UNREACHABLE, internal=f"DNS has no service {name}")
        targets = sorted(records, key=lambda record: int(record.data.priority))[:MAX_TARGETS]
        found: dict[Address, str] = {}
        places: dict[Address, Place] = {}
        ttl = min(float(record.ttl) for record in records)
        failed: Fault | None = None
        for target in targets:
            try:
                each = await self._name(target.data.target.rstrip(".").lower(), target.data.port, networks)
            except Fault as fault:
                failed = fault  # the others serve
            else:
                place = Place(int(target.data.priority), int(target.data.weight))
                for address, called in each.addresses.items():
                    found.setdefault(address, called)
                    places.setdefault(address, place)
                ttl = min(ttl, each.ttl)
        if not found and failed is not None:
            raise failed
        return Found(dict(list(found.items())[:MAX_ANSWERS]), ttl, places)

    async def _ask(self, name: str, kind: str) -> list[Any]:
        """The records of this kind, following aliases; none when there are none. Raises `Fault`."""
        import aiodns  # noqa: PLC0415  # pools that are names are few; nobody else needs a resolver

        if self._dns is None:
            self._dns = aiodns.DNSResolver(nameservers=list(self._servers) or None, timeout=2.0, tries=2)
        try:
            answer = await self._dns.query_dns(name, kind)
        except aiodns.error.DNSError as error:
            if error.args and error.args[0] in {aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENOTFOUND}:
                return []
            raise Fault(Reason.UPSTREAM_UNREACHABLE, internal=f"{name}: {error}") from None
        wanted = {"A": 1, "AAAA": 28, "SRV": 33}[kind]  # RFC 1035 §3.2.2, RFC 3596 §2.1, RFC 2782
        return [record for record in answer.answer if int(record.type) == wanted]

"""Nodes with tunnels to gateways of a test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.keys import client_context, stored_key
from agent.services import Service, Services, ServingSettings
from agent.settings import Address
from agent.store import Identity, KeyFile
from agent.tunnel import Tunnels, TunnelSettings
from foundation.clock import Clock, SystemClock
from foundation.faults import Fault
from foundation.wire.enrolment import Issued
from foundation.wire.tunnel import PROTOCOL
from tests.fakes.trust import TRUST_DOMAIN
from tests.support.certificates import SmallAuthority


def identity_of(authority: SmallAuthority, name: str = "edge-a", *, life: int = 3600, now: float = 0.0) -> Identity:
    """A node's identity, whose key is in software."""
    spiffe = f"spiffe://{TRUST_DOMAIN}/node/{name}"
    pair = authority.client(spiffe, name)
    leaf = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    chain = (leaf.public_bytes(Encoding.DER), authority.certificate.public_bytes(Encoding.DER))
    end = int(now) + life
    issued = Issued(spiffe, chain, end, end - life // 2, "none", end)
    return Identity(issued, KeyFile("software", pair.key.read_bytes()))


class FixedCredentials:
    """Implements `agent.tunnel.Credentials` with one identity."""

    trust_domain = TRUST_DOMAIN

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.asked = 0

    async def context(self) -> ssl.SSLContext:
        self.asked += 1
        return client_context(self.identity, stored_key(self.identity.key, None), (PROTOCOL,))

    def explain(self, fault: Fault) -> Fault:
        return fault


@asynccontextmanager
async def running(*parts: Any) -> AsyncIterator[None]:
    """The parts' `run`, until the block ends; one that fails ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in parts]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


class Node:
    """A node's tunnels and services."""

    def __init__(
        self,
        authority: SmallAuthority,
        gateways: Sequence[Address],
        name: str = "edge-a",
        *,
        services: dict[str, str] | None = None,
        clock: Clock | None = None,
        floor: int = 0,
        serving: ServingSettings | None = None,
        tunnel: TunnelSettings | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        offers = {each: Service.parse(text, "offers") for each, text in (services or {}).items()}
        self.services = Services(offers, serving or ServingSettings(), self.clock)
        self.services.check = lambda call: None
        self.credentials = FixedCredentials(identity_of(authority, name))
        self.tunnels = Tunnels(
            gateways,
            tunnel or TunnelSettings(),
            self.credentials,
            self.services,
            self.clock,
            floor=lambda: floor,
            draw=lambda: 0.0,
        )

    @asynccontextmanager
    async def running(self, *others: Any) -> AsyncIterator[Node]:
        async with running(self.services, self.tunnels, *others):
            yield self

    async def up(self, count: int = 1) -> None:
        """Wait until so many tunnels can be used."""
        while sum(tunnel.is_up for tunnel in self.tunnels.tunnels) < count:
            await asyncio.sleep(0.005)


def folder(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    return path

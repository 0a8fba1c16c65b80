"""From gateway to gateway, by mTLS: the way to a tunnel that ends at another one.

Laws held here:
- the other gateway is known by its SPIFFE ID alone, the one that claimed the tunnel (X509-SVID §4), and both ends agree
  on the relay's protocol before anything is said;
- it decides again, by its own snapshot; it has the tunnel itself, at whichever of its workers, or refuses.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.tls import client_context, peer_certificate
from foundation.tunnel import Tunnel
from foundation.wire.tunnel import RELAY_PROTOCOL
from gateway.broker.claims import Claim
from gateway.broker.links import Link, Links
from gateway.upstreams.trust import OwnCertificate, check_spiffe_id


class Finder(Protocol):
    """Knows who claimed tunnels (`gateway.broker.presence.Presence`)."""

    async def find(self, node: SpiffeId) -> tuple[Claim, ...]: ...


class GatewaysRelay:
    """Implements `gateway.broker.broker.Relay`."""

    def __init__(self, presence: Finder, gateway: SpiffeId, own: OwnCertificate, links: Links) -> None:
        """`gateway` is this one; `own` is its certificate, asked for each new connection."""
        self._presence = presence
        self._gateway = gateway
        self._own = own
        self._links = links
        self._context: tuple[int, ssl.SSLContext] | None = None

    async def to(self, target: SpiffeId) -> tuple[Tunnel, int]:
        """See `Relay.to`. The first gateway that can be reached is taken."""
        failure: Exception = Fault(Reason.TARGET_ABSENT)
        for claim in await self._presence.find(target):
            if claim.gateway == self._gateway or not claim.relay:
                continue
            try:
                return await self._reach(claim), claim.epoch
            except (OSError, Fault) as error:
                failure = Fault(Reason.RELAY_REFUSED, internal=f"{claim.gateway}: {error}")
        raise failure

    async def _reach(self, claim: Claim) -> Tunnel:
        async def dial(link: Link) -> None:
            host, _, port = claim.relay.rpartition(":")
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: link, host.strip("[]"), int(port), ssl=self._tls(), server_hostname=""
            )
            if transport.get_extra_info("ssl_object").selected_alpn_protocol() != RELAY_PROTOCOL:
                raise Fault(Reason.RELAY_REFUSED, "it speaks no relay protocol")
            check_spiffe_id(peer_certificate(transport), str(claim.gateway))

        return await self._links.to((claim.gateway, claim.relay), dial)

    def _tls(self) -> ssl.SSLContext:
        """Without a check of the host's name: `check_spiffe_id` compares the identity."""
        if self._context is None or self._context[0] != self._own.generation:
            context = client_context(
                self._own.root.read_bytes(),
                pair=self._own.calling,
                check_hostname=False,
                protocols=(RELAY_PROTOCOL,),
            )
            self._context = (self._own.generation, context)
        return self._context[1]

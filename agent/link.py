"""One connection to a gateway, from its handshake to its loss.

Laws held here:
- nothing is said before the other side has proven that it is a gateway of our authority, under the name that we
  dialled, and has agreed to speak this protocol;
- nothing is opened over it before it has greeted us, within a bound.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from cryptography import x509

from agent.settings import Address
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.leaf import spiffe_id
from foundation.reasons import Reason
from foundation.tls import peer_certificate
from foundation.tunnel import Stream, Tunnel
from foundation.tunnel_protocol import TunnelProtocol
from foundation.wire.streams import Hello
from foundation.wire.tunnel import PROTOCOL

_UNACKNOWLEDGED = 20_000  # milliseconds until the kernel gives up a gateway that does not take our bytes


class Served(Protocol):
    """Who serves the streams that gateways ask this node for."""

    @property
    def names(self) -> tuple[str, ...]:
        """The services that there are, as HELLO tells them."""
        ...

    def requested(self, stream: Stream, document: bytes) -> None:
        """As `foundation.tunnel.TunnelUser` has it."""
        ...


class Link(TunnelProtocol):
    """`tunnel` is of use once `ready` is done. `hello` is what the gateway said first, `lost` is set with the loss,
    `fault` is why we ended it, where we did."""

    def __init__(self, gateway: Address, trust_domain: str, hello: Hello, served: Served, clock: Clock) -> None:
        self.gateway = gateway
        self.tunnel = Tunnel(self, clock, dials=True)
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        self.hello = Hello()
        self.is_draining = False
        self.superseded_at: float | None = None
        self.fault: Fault | None = None
        self.on_draining: Callable[[], None] = _nothing
        self._trust_domain = trust_domain
        self._own_hello = hello
        self._served = served

    @property
    def is_up(self) -> bool:
        """Whether streams can be opened over it."""
        return self._greeted and not self.lost.is_set() and self.tunnel.state.can_open

    @property
    def _greeted(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None

    def abort(self, fault: Fault) -> None:
        """End it now, for `fault`."""
        self.fault = self.fault or fault
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End it, once what was written has left."""
        if self._transport is not None:
            self._transport.close()

    # --- asyncio's side -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)
        try:
            check_gateway(transport, self._trust_domain)
        except Fault as fault:
            self.abort(fault)
            return
        self.begin(self._own_hello)

    def data_received(self, data: bytes) -> None:
        if self.fault is None:
            super().data_received(data)

    def broken(self, fault: Fault) -> None:
        """See `TunnelProtocol.broken`."""
        self.abort(fault)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        super().connection_lost(error)
        if not self.ready.done():
            self.ready.set_exception(self.fault or unreachable(self.gateway, error or ConnectionResetError()))
            self.ready.exception()  # whoever waits hears of it; that nobody does is no error

    # --- the tunnel's side ------------------------------------------------------------------------------------

    def greeted(self, document: bytes) -> None:
        self.hello = Hello.parse(document)
        if not self.ready.done():
            self.ready.set_result(None)

    def requested(self, stream: Stream, document: bytes) -> None:
        self._served.requested(stream, document)

    def draining(self) -> None:
        self.is_draining = True
        self.on_draining()


def check_gateway(transport: asyncio.BaseTransport, trust_domain: str) -> None:
    """That the server, whose chain and name TLS has verified, is a gateway of this trust domain that speaks our
    protocol. Raises `Fault(SERVER_UNTRUSTED | TUNNEL_MALFORMED)`."""
    der = peer_certificate(transport)
    if der is None:
        raise Fault(Reason.SERVER_UNTRUSTED, "the server showed no certificate")
    try:
        server = spiffe_id(x509.load_der_x509_certificate(der))
    except (Fault, ValueError):
        raise Fault(Reason.SERVER_UNTRUSTED, "the server's certificate does not name a gateway") from None
    if server.kind is not Kind.GATEWAY or server.trust_domain != trust_domain:
        raise Fault(Reason.SERVER_UNTRUSTED, f"{server} is no gateway of ours")
    if transport.get_extra_info("ssl_object").selected_alpn_protocol() != PROTOCOL:
        raise Fault(Reason.TUNNEL_MALFORMED, f"the gateway does not speak {PROTOCOL}")


def unreachable(gateway: Address, error: Exception) -> Fault:
    """What a failed dial means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault(Reason.SERVER_UNTRUSTED, f"{gateway}: {error.verify_message}")
    return Fault(Reason.SERVER_UNREACHABLE, f"{gateway}: {error.__class__.__name__}", internal=str(error))


def _nothing() -> None: ...

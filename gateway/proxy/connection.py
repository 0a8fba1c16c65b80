"""One client's connection, whichever protocol it speaks: identified once, counted, bounded in time, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import peer_certificate
from gateway.access.lines import Access
from gateway.proxy.client import Client
from gateway.proxy.exchange import NEVER, HttpExchange
from gateway.proxy.grounds import no_request
from gateway.proxy.http1 import RequestHead
from gateway.proxy.identify import Caller, Peer, identify
from gateway.proxy.normalise import canonical
from gateway.proxy.record import entry_of
from gateway.proxy.services import ConnectionServices

WRITE_HIGH_WATER = 256 << 10


class ClientConnection(asyncio.Protocol):
    """Implements `gateway.streams.registry.Connection`. `due` is when the client is late (monotonic seconds)."""

    __slots__ = (
        "_full_until",
        "_paused",
        "_registered",
        "_siblings",
        "_transport",
        "caller",
        "due",
        "services",
        "source",
    )

    caller: Caller
    protocol = "HTTP/1.1"

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection]) -> None:
        """`siblings` are the listener's connections, of which this is one from its handshake to its end."""
        self.services = services
        self._siblings = siblings
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self.source: tuple[str, int] | None = None  # where it comes from, as far as that is known
        self._full_until = NEVER  # the client must have read on by then
        self._registered = False
        self.due = NEVER

    @property
    def buffered(self) -> int:
        """Bytes that are held for this client, in either direction."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def under_way(self) -> int:
        """Its exchanges that are not over."""
        raise NotImplementedError

    # --- what each protocol does in its own way -------------------------------------------------------

    def _welcomed(self) -> None:
        """The client is identified: serve it."""
        raise NotImplementedError

    def _turned_away(self, fault: Fault) -> None:
        """The client is not one that is served: tell it, and end."""
        raise NotImplementedError

    def _lost(self) -> None:
        """The connection is gone, and so is everybody who was served over it."""
        raise NotImplementedError

    def sweep(self, now: float) -> None:
        """End what is late at `now` (monotonic seconds)."""
        raise NotImplementedError

    def close_if_idle(self) -> None:
        """While draining: take nothing new, and end when nothing is under way."""
        raise NotImplementedError

    # --- what the event loop calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast(asyncio.Transport, transport)  # uvloop's are not of the class
        stream.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._siblings.add(self)
        try:
            self._identify(stream)
            self._admit()
        except Fault as fault:
            self.services.metrics.refused_connection(fault.reason)
            self._turned_away(fault)
        else:
            self._welcomed()

    def eof_received(self) -> None:
        """TLS has no half-closed connections here: the client's end is the connection's."""

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.due = NEVER
        if self._registered:
            self.services.registry.disconnected(self)
            self.services.seats.give_back(self.caller.text)
        self._lost()
        self._siblings.discard(self)

    # --- what its exchanges need ------------------------------------------------------------------------

    def _open(self, client: Client, head: RequestHead) -> HttpExchange:
        """The exchange for a request; it has not begun. Raises `Fault` when no policy need be asked to refuse it."""
        request = canonical(head.method, head.target, head.host, head.upgrade)
        table = self.services.routes()
        if table is None:
            raise Fault(Reason.REVISION_MISSING)
        route = table.match(request)
        services = self.services
        services.admit(route)
        return HttpExchange(client, head, request, route)

    def _record_refusal(self, fault: Fault, method: bytes, target: bytes, then: Callable[[Fault, str], None]) -> None:
        """Put on record that something is no request, or has no route; `then` tells why, and by which decision."""
        services = self.services
        decision = services.decider.refuse(fault.reason, no_request(fault))

        def answer(unrecorded: Fault | None) -> None:
            told = unrecorded or fault
            services.metrics.answered("", told.reason, told.reason.status, 0.0)
            if services.access is not None:
                services.access(self._refused(method, target, told.reason, decision.id))
            then(told, decision.id)

        services.records.before(
            entry_of(decision, self.caller.text, method, target, None, services.clock.now()), answer
        )

    def _refused(self, method: bytes, target: bytes, reason: Reason, decision: str) -> Access:
        """What the access log shows of what never became an exchange."""
        return Access(
            at=self.services.clock.now(),
            seconds=0.0,
            address=self.caller.source[0] if self.caller.source else "",
            identity=self.caller.text,
            method=method,
            target=target,
            protocol=self.protocol,
            status=reason.status,
            received=0,
            sent=0,
            route="",
            reason=reason.code,
            decision=decision,
            upstream="",
            trace="",
            referer=b"",
            agent=b"",
        )

    @property
    def peer(self) -> Peer:
        return self.caller.peer

    # --- the transport ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """End it once what was written has gone out."""
        self.due = NEVER
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: Reason) -> None:
        """End it now, without a TLS goodbye: a client must not take a cut for an end."""
        if self._transport is not None:
            self._transport.abort()

    def _identify(self, transport: asyncio.Transport) -> None:
        peer = identify(peer_certificate(transport), self.services.trust_domain)
        self.caller = Caller.of(peer, self.source)

    def _admit(self) -> None:
        most = self.services.settings.connections_per_identity
        if not self.services.seats.take(self.caller.text, most):
            self._record_refusal(Fault(Reason.CONNECTION_LIMIT), b"", b"", _told_already)
            raise Fault(Reason.CONNECTION_LIMIT, f"at most {most} of one identity")
        self.services.registry.connected(self)
        self._registered = True


def _told_already(told: Fault, decision: str) -> None:
    """The connection itself is refused, and that was told when it came."""

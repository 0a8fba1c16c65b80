"""Connections of tunnels, from their handshake to their end: a node's, and another gateway's that relays to us."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.reasons import Reason
from foundation.tunnel import Stream, Tunnel
from foundation.wire.streams import Hello, StreamRefusal, StreamRelay
from gateway.broker.broker import Broker
from gateway.broker.callers import Callers
from gateway.broker.links import SOFTWARE, STREAMS
from gateway.broker.stream import BrokeredStream, WaitingStreams
from gateway.proxy.connection import ClientConnection
from gateway.proxy.exchange import NEVER
from gateway.proxy.services import ConnectionServices
from gateway.standing import refusal_by_standing, standing_of

REPLACED_SECONDS = 3.0
LOOK_SECONDS = 5.0


class AcceptedTunnel(ClientConnection):
    """What both kinds have in common. Implements `foundation.tunnel.TunnelUser`."""

    __slots__ = ("_broker", "_greeted", "_waiting", "tunnel")

    kind: ClassVar[Kind]

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection], broker: Broker) -> None:
        super().__init__(services, siblings)
        self._broker = broker
        self._greeted = False
        self._waiting = WaitingStreams()
        of_node = self.kind is Kind.NODE
        self.tunnel = Tunnel(
            self,
            services.clock,
            dials=False,
            most_streams=broker.settings.streams if of_node else STREAMS,
            of_gateways=not of_node,
        )

    # --- the connection -------------------------------------------------------------------------------------

    def _welcomed(self) -> None:
        if self._transport is None:
            return
        if self.peer.id.kind is not self.kind:
            self.services.metrics.refused_connection(Reason.KIND_NOT_ALLOWED)
            self.abort(Reason.KIND_NOT_ALLOWED)
            return
        policy = self._broker.snapshot().policy
        self.tunnel.made(self._transport)
        self.tunnel.hello(Hello(SOFTWARE, (), policy.revision if policy is not None else 0).encode())
        self.due = self.services.clock.monotonic() + self.services.settings.first_byte_timeout

    def _turned_away(self, fault: Fault) -> None:
        self.abort(fault.reason)

    def data_received(self, data: bytes) -> None:
        try:
            self.tunnel.received(data)
        except Fault as fault:
            self.services.metrics.refused_connection(fault.reason)
            self.abort(fault.reason)

    def pause_writing(self) -> None:
        self._full_until = self.services.clock.monotonic() + self.services.settings.body_timeout
        self.tunnel.blocked()

    def resume_writing(self) -> None:
        self._full_until = NEVER
        self.tunnel.unblocked()

    def _lost(self) -> None:
        self._depart()
        self.tunnel.lost()

    def sweep(self, now: float) -> None:
        """See `ClientConnection.sweep`."""
        silence = self._broker.settings.silence
        if self._full_until <= now or self.due <= now or now - self.tunnel.heard_at > silence:
            self.abort(Reason.REQUEST_TIMEOUT)
        else:
            self._waiting.sweep(now)

    def close_if_idle(self) -> None:
        """While draining: the other side is told to have its new streams elsewhere."""
        if self._greeted:
            self._depart()
            self.tunnel.drain()
        if not self.tunnel.state.open_count:
            self.close()

    @property
    def under_way(self) -> int:
        return self.tunnel.state.open_count

    @property
    def buffered(self) -> int:
        return self.tunnel.buffered

    # --- the tunnel -----------------------------------------------------------------------------------------

    def greeted(self, document: bytes) -> None:
        """The other side's HELLO."""
        Hello.parse(document)
        peer, snapshot = self.peer, self._broker.snapshot()
        standing = standing_of(snapshot, peer.id, peer.serial, peer.issuer)
        refusal = refusal_by_standing(standing, peer.not_before, peer.not_after, self.services.clock.now())
        if refusal is not None:
            raise Fault(refusal)
        self._arrive()
        self._greeted = True
        self.due = NEVER

    def requested(self, stream: Stream, document: bytes) -> None:
        """The other side wants a stream."""
        try:
            brokered = self._brokered(stream, document)
        except Fault as fault:
            self._refuse_unasked(stream, fault)
            return
        if brokered is not None:
            self._waiting.add(brokered)

    def draining(self) -> None:
        """The other side goes: nobody asks it for more."""
        self._depart()

    def _refuse_unasked(self, stream: Stream, fault: Fault) -> None:
        """Put on record, then answer, that something is no stream or has no route."""

        def answer(told: Fault, decision: str) -> None:
            stream.refuse(StreamRefusal(told.reason, decision).encode())

        self._record_refusal(fault, b"STREAM", b"", answer)

    def _arrive(self) -> None:
        """It is one that is served. Raises `Fault`."""

    def _depart(self) -> None:
        """It takes no new streams any more."""
        self._greeted = False

    def _brokered(self, stream: Stream, document: bytes) -> BrokeredStream | None:
        raise NotImplementedError


class TunnelConnection(AcceptedTunnel):
    """A node's tunnel. Implements `gateway.broker.broker.NodeTunnel`.

    While draining it stays the one to ask until the node has another: siblings find the node at any moment."""

    __slots__ = ("_look_again", "_replaced_by", "epoch")

    protocol = "tunnel"
    kind = Kind.NODE

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection], broker: Broker) -> None:
        super().__init__(services, siblings, broker)
        self.epoch = 0
        self._replaced_by = NEVER  # while draining: when the node should have another tunnel by (monotonic seconds)
        self._look_again = 0.0  # whether its certificate has ended (monotonic seconds)

    def sweep(self, now: float) -> None:
        """See `ClientConnection.sweep`. A tunnel lasts no longer than the trust in it."""
        if now >= self._look_again:
            self._look_again = now + LOOK_SECONDS
            if self.services.clock.now() >= self._broker.certified_until(self.peer):
                self.abort(Reason.CERTIFICATE_EXPIRED)
                return
        super().sweep(now)

    def close_if_idle(self) -> None:
        """While draining: the node is told to have its new streams elsewhere, and for this it needs another tunnel."""
        now = self.services.clock.monotonic()
        if self._replaced_by == NEVER:
            self._replaced_by = now + REPLACED_SECONDS
            self.tunnel.drain()
        if self.under_way:
            return
        if not self._greeted or now >= self._replaced_by or self._broker.is_replaced(self):
            self.close()

    def _arrive(self) -> None:
        self._broker.arrived(self)

    def _depart(self) -> None:
        if self._greeted:
            self._greeted = False
            self._broker.departed(self)

    def _brokered(self, stream: Stream, document: bytes) -> BrokeredStream | None:
        return self._broker.requested(self.services, self.caller, stream, document)


class RelayConnection(AcceptedTunnel):
    """Another gateway's, which passes on what its nodes ask for. `check` raises `Fault` for a node's certificate that
    is not of our authority."""

    __slots__ = ("_callers",)

    protocol = "relay"
    kind = Kind.GATEWAY

    def __init__(
        self,
        services: ConnectionServices,
        siblings: set[ClientConnection],
        broker: Broker,
        check: Callable[[bytes], None],
    ) -> None:
        super().__init__(services, siblings, broker)
        self._callers = Callers(services.trust_domain, check)

    def _brokered(self, stream: Stream, document: bytes) -> BrokeredStream | None:
        relay = StreamRelay.parse(document)
        caller = self._callers.of(relay.certificate)
        return self._broker.relayed(self.services, caller, stream, relay, by_sibling=False)

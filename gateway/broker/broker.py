"""Which tunnels end here, and how a target is reached: over its tunnel at this worker, at another one, or elsewhere.

Laws held here:
- whose a tunnel is, its certificate alone says; a node that comes again has its newest tunnel asked first;
- who was found elsewhere is asked with the epoch of the claim by which it was found: who lost the claim refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord
from foundation.reasons import Reason
from foundation.tunnel import Stream, StreamUser, Tunnel
from foundation.wire.streams import AUTHORITY_ROUTE, MAX_SEGMENTS, StreamCall, StreamRelay, StreamRequest
from gateway.broker.authority import AuthorityCalls
from gateway.broker.http import StreamedConnection
from gateway.broker.settings import BrokerSettings
from gateway.broker.siblings import SiblingTable
from gateway.broker.stream import BrokeredStream, Reach, by_name_alone, node, stream_route
from gateway.proxy.connection import ClientConnection
from gateway.proxy.identify import Caller, Peer
from gateway.proxy.services import ConnectionServices
from gateway.snapshot import PolicyPart, Snapshot, SnapshotStore
from policies.model import Permit
from policies.segments import segments_of

HTTP = "http"


class NodeTunnel(Protocol):
    """A node's tunnel that ends here. `epoch` is that of its claim."""

    epoch: int

    @property
    def peer(self) -> Peer: ...

    @property
    def tunnel(self) -> Tunnel: ...


class Relay(Protocol):
    """A way to tunnels that end elsewhere (`gateway.broker.siblings_relay`, `gateway.broker.gateways_relay`)."""

    async def to(self, target: SpiffeId) -> tuple[Tunnel, int]:
        """What leads to whoever holds the tunnel of `target`, and the epoch of its claim. Raises
        `Fault(TARGET_ABSENT)`, `OSError`, `TimeoutError`."""
        ...


class Announcer(Protocol):
    """Tells other gateways which tunnels end here (`gateway.broker.presence.Presence`)."""

    def claim(self, node: SpiffeId, epoch: int) -> None: ...

    def release(self, node: SpiffeId, epoch: int) -> None: ...


class Broker:
    """The tunnels of one worker, and the streams between them."""

    def __init__(
        self,
        settings: BrokerSettings,
        table: SiblingTable,
        store: SnapshotStore,
        siblings: Relay,
        gateways: Relay | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        """`siblings` leads to the other workers of this gateway, by `table`; `gateways` to other gateways, which hear
        from `announcer` what is here: None where there are none."""
        self.settings = settings
        self._store = store
        self._renewals = store.renewals
        self._table = table
        self._siblings = siblings
        self._gateways = gateways
        self._announcer = announcer
        self._tunnels: dict[SpiffeId, NodeTunnel] = {}
        self._authority = AuthorityCalls(settings.authority) if settings.authority else None
        self.connections: set[ClientConnection] = set()
        """The listener's, among which those are that carry HTTP within tunnels."""

    @property
    def open_count(self) -> int:
        """Tunnels of nodes that end here."""
        return len(self._tunnels)

    async def close(self) -> None:
        """End what no listener ends."""
        if self._authority is not None:
            await self._authority.close()

    def snapshot(self) -> Snapshot:
        """What is true now."""
        return self._store.current

    # --- tunnels ----------------------------------------------------------------------------------------------

    def arrived(self, tunnel: NodeTunnel) -> None:
        """A node's tunnel stands. Raises `Fault(OVERLOADED)` when there is no room for it."""
        node_id = tunnel.peer.id
        tunnel.epoch = self._table.claim(node_id)
        self._tunnels[node_id] = tunnel
        if self._announcer is not None:
            self._announcer.claim(node_id, tunnel.epoch)

    def departed(self, tunnel: NodeTunnel) -> None:
        """It takes no new streams any more."""
        node_id = tunnel.peer.id
        if self._tunnels.get(node_id) is not tunnel:
            return
        del self._tunnels[node_id]
        self._table.release(node_id, tunnel.epoch)
        if self._announcer is not None:
            self._announcer.release(node_id, tunnel.epoch)

    def is_replaced(self, tunnel: NodeTunnel) -> bool:
        """Whether the node holds a newer tunnel, at whichever worker."""
        owner = self._table.owner(tunnel.peer.id)
        return owner is None or owner.epoch > tunnel.epoch

    def certified_until(self, peer: Peer) -> float:
        """Until when a tunnel may stand by its certificate, or by one that was renewed from it (seconds since the Unix
        epoch)."""
        return self._renewals.until(peer, self.snapshot().revoked_serials)

    def holder(self, target: SpiffeId) -> NodeTunnel | None:
        return self._tunnels.get(target)

    # --- streams ----------------------------------------------------------------------------------------------

    def requested(
        self, services: ConnectionServices, caller: Caller, near: Stream, document: bytes
    ) -> BrokeredStream | None:
        """Begin what a node asks for over its own tunnel; the stream, where its end has to be seen to. Raises `Fault`
        when no policy need be asked to refuse it."""
        wanted = StreamRequest.parse(document)
        if wanted.route == AUTHORITY_ROUTE and self._authority is not None:
            self._authority.begin(services, caller, near)
            return None
        target = node(services.trust_domain, wanted.target)
        ways = [self._siblings] if self._gateways is None else [self._siblings, self._gateways]
        if services.draining:
            raise Fault(Reason.DRAINING)
        return self._begin(services, caller, near, wanted, self._reach(target, ways))

    def relayed(
        self, services: ConnectionServices, caller: Caller, near: Stream, relay: StreamRelay, *, by_sibling: bool
    ) -> BrokeredStream | None:
        """The same for what another gateway passes on, whose target's tunnel must end at this one; what a sibling
        passes on, at this worker. Raises `Fault`."""
        reach = self._reach(node(services.trust_domain, relay.request.target), [] if by_sibling else [self._siblings])
        if isinstance(reach, Here) and relay.epoch > reach.epoch:
            raise Fault(Reason.TARGET_ABSENT)
        return self._begin(services, caller, near, relay.request, reach)

    def _begin(
        self, services: ConnectionServices, caller: Caller, near: Stream, wanted: StreamRequest, reach: Reach
    ) -> BrokeredStream | None:
        table = services.routes()
        if table is None:
            raise Fault(Reason.REVISION_MISSING)
        route = stream_route(table, wanted)
        if route.protocol == HTTP:
            StreamedConnection(services, self.connections, caller, wanted, reach).begin(near)
            return None
        services.admit(route)
        stream = BrokeredStream(services, caller, wanted, route, near, reach, self.settings.answer)
        stream.begin()
        return stream

    def _reach(self, target: SpiffeId, ways: Sequence[Relay]) -> Here | Elsewhere:
        here = self._tunnels.get(target)
        return Here(self, here) if here is not None else Elsewhere(ways, target)


class Here:
    """Implements `Reach`: the target's tunnel ends at this worker."""

    def __init__(self, broker: Broker, holder: NodeTunnel) -> None:
        self._broker = broker
        self._holder = holder
        self.target = holder.peer
        self.epoch = holder.epoch

    async def open(self, user: StreamUser, permit: Permit, request: StreamRequest, caller: Caller) -> Stream:
        """See `Reach.open`."""
        snapshot = self._broker.snapshot()
        source = permit.query.identity
        if self._broker.holder(self.target.id) is not self._holder or snapshot.policy is None:
            raise Fault(Reason.TARGET_ABSENT)
        call = StreamCall(
            source=source.id,
            segments=_segments(snapshot.policy, source),
            route=request.route,
            service=snapshot.policy.routes.stream(request.route).service,
            protocol=request.protocol,
            revision=permit.numbers.policy,
            decision=permit.id,
        )
        return self._holder.tunnel.open(user, call.encode())


def _segments(policy: PolicyPart, source: IdentityRecord) -> tuple[str, ...]:
    """Those that the caller is in: the target compares them with its own revision."""
    data = policy.compiled.data if policy.compiled is not None else {}
    return tuple(sorted(segments_of(data, source))[:MAX_SEGMENTS])


class Elsewhere:
    """Implements `Reach`: another worker, or another gateway, has the target's tunnel, and decides too. The first of
    `ways` that knows of one is taken."""

    def __init__(self, ways: Sequence[Relay], target: SpiffeId) -> None:
        self._ways = ways
        self.target = by_name_alone(target)

    async def open(self, user: StreamUser, permit: Permit, request: StreamRequest, caller: Caller) -> Stream:
        """See `Reach.open`."""
        tunnel, epoch = await self._to()
        relay = StreamRelay(request, caller.peer.certificate, epoch, permit.id)
        return tunnel.open(user, relay.encode())

    async def _to(self) -> tuple[Tunnel, int]:
        for way in self._ways:
            try:
                return await way.to(self.target.id)
            except Fault as fault:
                if fault.reason is not Reason.TARGET_ABSENT:
                    raise
            except OSError as error:  # a time-out among them
                raise Fault(Reason.RELAY_REFUSED, internal=str(error)) from error
        raise Fault(Reason.TARGET_ABSENT)

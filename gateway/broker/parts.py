"""The broker of one worker, and how its parts are joined."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foundation.clock import Clock
from foundation.hotstate import HotState
from foundation.identifiers import SpiffeId
from foundation.wire.tunnel import PROTOCOL, RELAY_PROTOCOL
from gateway.broker.broker import Broker
from gateway.broker.callers import check_issued
from gateway.broker.connection import RelayConnection, TunnelConnection
from gateway.broker.gateways_relay import GatewaysRelay
from gateway.broker.links import Links
from gateway.broker.presence import Presence
from gateway.broker.settings import BrokerSettings
from gateway.broker.siblings import SiblingTable
from gateway.broker.siblings_relay import SiblingsRelay
from gateway.identity import Certificates
from gateway.proxy.connection import ClientConnection
from gateway.proxy.services import ConnectionMaker, ConnectionServices
from gateway.snapshot import SnapshotStore


class BrokerParts:
    """Built before the listener, told of the listener's services by `listen`."""

    def __init__(
        self,
        settings: BrokerSettings,
        table: SiblingTable,
        folder: Path,
        worker: int,
        store: SnapshotStore,
        certificates: Certificates,
        clock: Clock,
        hot: HotState | None = None,
    ) -> None:
        """`folder` is where the workers' sockets are; `worker` is this one's number. `hot` is the hot state that
        several gateways share; None where there is one gateway."""
        self._siblings = SiblingsRelay(table, folder, worker, clock)
        self._links = Links(clock)
        self._hot = hot
        self._presence: Presence | None = None
        gateways = None
        if hot is not None:
            own = SpiffeId.parse(certificates.spiffe_id)
            self._presence = Presence(hot, clock, own, settings.relay)
            gateways = GatewaysRelay(self._presence, own, certificates, self._links)
        self.broker = Broker(settings, table, store, self._siblings, gateways, self._presence)

        def check(certificate: bytes) -> None:
            check_issued(certificate, certificates.authorities, clock.now())

        def tunnel(services: ConnectionServices, siblings: set[ClientConnection]) -> TunnelConnection:
            return TunnelConnection(services, siblings, self.broker)

        def relay(services: ConnectionServices, siblings: set[ClientConnection]) -> RelayConnection:
            return RelayConnection(services, siblings, self.broker, check)

        self.protocols: dict[str, ConnectionMaker] = {PROTOCOL: tunnel, RELAY_PROTOCOL: relay}

    async def listen(self, services: ConnectionServices, connections: set[ClientConnection]) -> None:
        """Take what siblings pass on. `connections` are the listener's."""
        self.broker.connections = connections
        await self._siblings.listen(services, self.broker)

    async def run(self) -> None:
        """Keep links alive and others informed, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._siblings.run())
            group.create_task(self._links.run())
            if self._presence is not None:
                group.create_task(self._presence.run())

    async def close(self) -> None:
        """End all of it."""
        await self.broker.close()
        await self._links.close()
        await self._siblings.close()
        if self._hot is not None:
            await self._hot.close()

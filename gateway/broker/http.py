"""HTTP between nodes: the gateway reads the requests of a stream and decides each, with both ends in the input.

The client's side is an HTTP/1.1 connection over the stream that a node asked for; the target's side are streams to its
service, each permitted by the request for which it is opened, and kept for the next one. So everything that holds for
requests to an upstream holds here: one reader, one canonical form, authorised bytes are forwarded bytes.
"""

from __future__ import annotations

import asyncio
from typing import cast

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import StreamAnswer, StreamRequest
from gateway.broker.stream import Reach
from gateway.broker.transport import StreamTransport
from gateway.proxy.client import Client
from gateway.proxy.connection import ClientConnection
from gateway.proxy.exchange import HttpExchange
from gateway.proxy.http1 import Limits, RequestHead, ResponseReader
from gateway.proxy.http1_connection import Http1Connection
from gateway.proxy.identify import Caller
from gateway.proxy.normalise import canonical
from gateway.proxy.route import RouteTable
from gateway.proxy.services import ConnectionServices
from gateway.proxy.upstream import UpstreamSettings
from gateway.proxy.upstream_connection import UpstreamConnection
from gateway.upstreams.budget import Failure
from gateway.upstreams.endpoint import Endpoint
from gateway.upstreams.pool import LivePool
from policies.model import CanonicalRequest, Permit
from policies.routes import Route
from policies.upstreams import Address, Pool

_SETTINGS = UpstreamSettings()
_READER = ResponseReader(Limits(_SETTINGS.head_bytes, _SETTINGS.fields))


class StreamedConnection(Http1Connection):
    """A node's HTTP connection within its tunnel, to one target over one route."""

    __slots__ = ("_reach", "_wanted", "endpoint")

    protocol = "HTTP/1.1"

    def __init__(
        self,
        services: ConnectionServices,
        siblings: set[ClientConnection],
        caller: Caller,
        wanted: StreamRequest,
        reach: Reach,
    ) -> None:
        super().__init__(services, siblings)
        self.caller = caller
        self._wanted = wanted
        self._reach = reach
        address = Address(wanted.target, 0)
        pool = LivePool(Pool(wanted.route, (address,)), _SETTINGS, services.clock)
        self.endpoint: Endpoint = pool.endpoints[address]

    def begin(self, near: Stream) -> None:
        """Take the stream that the node asked for: what comes over it are requests."""
        transport = StreamTransport(self)
        near.accept(transport, StreamAnswer().encode())
        transport.attach(near)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its client is the tunnel's, which was identified and counted."""
        self._transport = cast(asyncio.Transport, transport)
        self._siblings.add(self)
        self.services.registry.connected(self)
        self._welcomed()

    def connection_lost(self, error: Exception | None) -> None:
        self.services.registry.disconnected(self)
        super().connection_lost(error)
        self.endpoint.retire()

    def _open(self, client: Client, head: RequestHead) -> HttpExchange:
        services, table = self.services, self.services.routes()
        request = canonical(head.method, head.target, head.host, head.upgrade)
        if table is None:
            raise Fault(Reason.REVISION_MISSING)
        route = table.stream(self._wanted.route)
        services.admit(route)
        return StreamedExchange(client, head, request, route, self._wanted, self._reach, self.endpoint)


class StreamedExchange(HttpExchange):
    """One request between nodes. What it is forwarded over is a stream to the target's service."""

    __slots__ = ("_endpoint", "_reach", "_wanted")

    def __init__(
        self,
        client: Client,
        head: RequestHead,
        request: CanonicalRequest,
        route: Route,
        wanted: StreamRequest,
        reach: Reach,
        endpoint: Endpoint,
    ) -> None:
        super().__init__(client, head, request, route, reach.target)
        self._wanted = wanted
        self._reach = reach
        self._endpoint = endpoint

    def _route_in(self, table: RouteTable) -> Route:
        return table.stream(self._wanted.route)

    def _dial_for(self, permit: Permit, *, fresh: bool) -> asyncio.Task[None] | None:
        idle = None if fresh else self._endpoint.take(None)
        if idle is not None:
            self._lend(cast(UpstreamConnection, idle))
            return None
        return asyncio.get_running_loop().create_task(self._call(permit))

    async def _call(self, permit: Permit) -> None:
        connection = UpstreamConnection(self._endpoint, None, _READER, shows=False)
        transport = StreamTransport(connection)
        answer = transport.answer = asyncio.get_running_loop().create_future()
        stream: Stream | None = None
        try:
            async with asyncio.timeout(self._route.connect_timeout):
                stream = await self._reach.open(transport, permit, self._wanted, self._caller)
                await answer
        except Fault as fault:
            self.failed(fault, Failure.FINAL, None)
        except TimeoutError:
            if stream is not None:
                stream.reset(Reason.UPSTREAM_TIMEOUT)
            self.failed(Fault(Reason.UPSTREAM_TIMEOUT), Failure.FINAL, None)
        except asyncio.CancelledError:
            if stream is not None:
                stream.reset(Reason.TUNNEL_LOST)
            raise
        else:
            transport.attach(stream)
            self._lend(connection)

    def _lend(self, connection: UpstreamConnection) -> None:
        connection.lend(self._request.method.encode("ascii"), self)
        self.connected(connection)

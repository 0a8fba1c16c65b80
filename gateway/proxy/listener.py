"""Accepts connections, and gives each the TLS context that is current then.

Laws held here:
- one listener has one regime: a client certificate is required of everybody, whatever name they ask for;
- what has not proven a certificate yet is bounded in number and time; when there are too many, the oldest gives way, so
  that strangers who hang cannot keep others out;
- handshakes are bounded for each source address before the first byte of TLS;
- what all connections together hold in buffers is bounded;
- who forwards others' connections is named in the settings, and says of each whose it is (`forwarders`);
- sockets are accepted by us, so that a new certificate or CA is in force with the next connection.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
import ssl
from collections.abc import Callable, Container
from typing import cast

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import HTTP_2
from gateway.proxy.connection import ClientConnection
from gateway.proxy.forwarders import Forwarders, Source, read_source
from gateway.proxy.http1_connection import Http1Connection
from gateway.proxy.http2_connection import Http2Connection
from gateway.proxy.memory import over_budget
from gateway.proxy.services import ConnectionMaker, ConnectionServices

ContextProvider = Callable[[], ssl.SSLContext]
ACCEPTED_PER_TURN = 64
SWEEP_SECONDS = 0.25
SWEEPS_PER_WEIGHING = 4
DRAIN_STEP_SECONDS = 0.05
_LOG = logging.getLogger(__name__)


class Arrival(asyncio.Protocol):
    """A connection whose client has proven its certificate: from here on it is the protocol's that ALPN agreed on
    (RFC 7301). HTTP/2 by prior knowledge or by Upgrade there is none."""

    def __init__(self, services: ConnectionServices, siblings: set[ClientConnection], source: Source) -> None:
        self._services = services
        self._siblings = siblings
        self._source = source

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        connection: ClientConnection = self._kind(agreed)(self._services, self._siblings)
        connection.source = self._source
        cast(asyncio.Transport, transport).set_protocol(connection)
        connection.connection_made(transport)

    def _kind(self, agreed: str | None) -> ConnectionMaker:
        if agreed == HTTP_2:
            return Http2Connection
        return self._services.protocols.get(agreed or "", Http1Connection)


class Listener:
    """The connections of one worker, from the listening sockets that are its to accept from."""

    def __init__(self, context: ContextProvider, services: ConnectionServices) -> None:
        self._context = context
        self._services = services
        self._settings = services.settings
        self._forwarders = Forwarders(services.settings.proxy_protocol_from)
        self._listening: dict[int, socket.socket] = {}  # by descriptor
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in the order of their coming
        self.connections: set[ClientConnection] = set()
        self._sweeping: asyncio.Task[None] | None = None

    def start(self, *listening: socket.socket) -> None:
        """Accept from these sockets, which listen already, and from no others. Needs a running event loop; may be
        called again."""
        wanted = {each.fileno(): each for each in listening}
        self._stop_accepting(but=wanted)
        loop = asyncio.get_running_loop()
        for descriptor, each in wanted.items():
            each.setblocking(False)
            if descriptor not in self._listening:
                self._listening[descriptor] = each
                loop.add_reader(descriptor, self._accept, each)
        if self._sweeping is None:
            self._sweeping = loop.create_task(self._sweep())

    def stop_listening(self) -> None:
        """Accept who waits already, and nobody any more."""
        for each in list(self._listening.values()):
            self._accept(each)
        self._stop_accepting()

    async def drain(self, seconds: float, grace: float = 0.0) -> None:
        """Accept no more, let what is under way end, at most for `seconds`, then end the rest. For `grace` seconds idle
        connections may still send one request, and are told then that it was the last: what is on its way when
        somebody takes over is not lost."""
        self._services.draining = True
        self.stop_listening()
        clock = self._services.clock
        began = clock.monotonic()
        while (self.connections or self._handshakes) and clock.monotonic() < began + seconds:
            if clock.monotonic() >= began + grace:
                for connection in list(self.connections):
                    connection.close_if_idle()
            await clock.sleep(DRAIN_STEP_SECONDS)
        await self.close()

    async def close(self) -> None:
        """End everything now."""
        self._stop_accepting()
        tasks = [*self._handshakes, *([self._sweeping] if self._sweeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort(Reason.DRAINING)

    @property
    def open_count(self) -> int:
        return len(self.connections)

    def _stop_accepting(self, but: Container[int] = ()) -> None:
        for descriptor in [each for each in self._listening if each not in but]:
            asyncio.get_running_loop().remove_reader(descriptor)
            del self._listening[descriptor]

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(listening, error)
                return
            self._welcome(accepted, address[:2])

    def _rest(self, listening: socket.socket, error: OSError) -> None:
        """Out of descriptors or memory: the queue keeps whom we cannot take, and we come back."""
        if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
            return
        _LOG.error("no more connections can be accepted now: %s", error)
        descriptor, loop = listening.fileno(), asyncio.get_running_loop()
        loop.remove_reader(descriptor)

        def again() -> None:
            if self._listening.get(descriptor) is listening:
                loop.add_reader(descriptor, self._accept, listening)

        loop.call_later(SWEEP_SECONDS, again)

    def _welcome(self, accepted: socket.socket, source: Source) -> None:
        refused = self._unwelcome(source)
        if refused is not None:
            self._services.metrics.refused_connection(refused)
            accepted.close()
            return
        if len(self.connections) + len(self._handshakes) >= self._settings.connections:
            self._services.metrics.refused_connection(Reason.OVERLOADED)
            accepted.close()
            return
        if len(self._handshakes) >= self._settings.handshakes:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]  # not when it ends: the next one to give way is another
            oldest.cancel()
            self._services.metrics.refused_connection(Reason.OVERLOADED)
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._shake(accepted, source))
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    def _unwelcome(self, source: Source) -> Reason | None:
        """Why no byte is read of a connection from there."""
        if self._forwarders:
            return None if self._forwarders.believe(source[0]) else Reason.PROXY_HEADER_INVALID
        return self._too_often(source)

    def _too_often(self, source: Source) -> Reason | None:
        admitted = self._services.sources.admits(source[0], self._services.clock.monotonic())
        return None if admitted else Reason.SOURCE_RATE_LIMITED

    async def _shake(self, accepted: socket.socket, source: Source) -> None:
        """The handshake; `Arrival.connection_made` is called when the certificate is proven."""
        span, failed = self._services.spans("handshake", None), "cancelled"
        try:
            if self._forwarders:
                source = await self._forwarded_from(accepted, source)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._arrival(source),
                accepted,
                ssl=self._context(),
                ssl_handshake_timeout=self._settings.handshake_timeout,
                ssl_shutdown_timeout=self._settings.linger_timeout,
            )
            failed = ""
        except Fault as fault:
            failed = fault.reason.code
            self._services.metrics.refused_connection(fault.reason)
            accepted.close()
        except (OSError, TimeoutError) as error:
            _LOG.debug("a handshake failed: %s", error)
            self._services.metrics.refused_connection(Reason.CLIENT_CERTIFICATE_INVALID)
            failed = Reason.CLIENT_CERTIFICATE_INVALID.code
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            span.end(failed)

    def _arrival(self, source: Source) -> Arrival:
        return Arrival(self._services, self.connections, source)

    async def _forwarded_from(self, accepted: socket.socket, forwarder: Source) -> Source:
        """Where a forwarded connection comes from, and is counted. Raises `Fault`, `OSError`, `TimeoutError`."""
        async with asyncio.timeout(self._settings.handshake_timeout):
            source = await read_source(accepted)
        if source is None:
            return forwarder
        too_often = self._too_often(source)
        if too_often is not None:
            raise Fault(too_often)
        return source

    async def _sweep(self) -> None:
        """Ends what is late, and sees by how much this loop is late itself. One timer for all, so that a request costs
        none."""
        clock, services = self._services.clock, self._services
        for turn in itertools.count(1):
            asleep = clock.monotonic()
            await clock.sleep(SWEEP_SECONDS)
            now = clock.monotonic()
            services.overload.observe(now - asleep - SWEEP_SECONDS)
            for connection in list(self.connections):
                connection.sweep(now)
            if turn % SWEEPS_PER_WEIGHING == 0:
                self._weigh()
            services.upstreams.sweep()
            services.metrics.connections(len(self.connections))

    def _weigh(self) -> None:
        """End who holds too much in buffers."""
        each = self._settings.connection_memory
        held = ((one, one.buffered, each * max(1, one.under_way)) for one in self.connections)
        for connection in over_budget(held, self._settings.memory):
            self._services.metrics.refused_connection(Reason.CONNECTION_MEMORY)
            connection.abort(Reason.CONNECTION_MEMORY)

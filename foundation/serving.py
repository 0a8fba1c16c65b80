"""Sockets for applications: TLS listeners whose context may change under them, and Unix sockets.

Connections are accepted as sockets and each gets the context that is current then, so that a new certificate or CA
needs no restart. What has not proven itself is bounded: connections in all and per address, the handshake's time, and
the time to the first request (aiohttp's keep-alive time-out runs from the first byte on).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from foundation.listening import listen, listen_unix, remove_dead_socket


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Bounds of one listener; times in seconds."""

    connections: int = 1024
    per_address: int = 64
    handshake: float = 10.0
    idle: float = 30.0
    drain: float = 5.0


@contextlib.asynccontextmanager
async def serve_api(
    application: web.Application,
    context: Callable[[], ssl.SSLContext],
    host: str,
    port: int,
    limits: ListenerLimits | None = None,
    *,
    listening: socket.socket | None = None,
) -> AsyncIterator[tuple[str, int]]:
    """Serve `application` over TLS for as long as the block runs; gives the address that is listened on. `context` is
    asked for every connection. Raises `Fault(SETTING_INVALID)` when the address cannot be used. `listening` listens
    there already, and is closed at the end."""
    listening = listening or listen(host, port)
    async with _serve(application, listening, context, limits or ListenerLimits()):
        yield listening.getsockname()[:2]


@contextlib.asynccontextmanager
async def serve_unix(
    application: web.Application,
    path: Path,
    limits: ListenerLimits | None = None,
    *,
    listening: socket.socket | None = None,
) -> AsyncIterator[Path]:
    """Serve `application` at the Unix socket `path`, mode 0600, for as long as the block runs. A socket that nobody
    listens at any more is replaced. Raises `Fault(SETTING_INVALID)`. `listening` is as for `serve_api`."""
    listening = listening or listen_unix(path)
    try:
        async with _serve(application, listening, None, limits or ListenerLimits(per_address=1024)):
            yield path
    finally:
        remove_dead_socket(path)


@contextlib.asynccontextmanager
async def _serve(
    application: web.Application,
    listening: socket.socket,
    context: Callable[[], ssl.SSLContext] | None,
    limits: ListenerLimits,
) -> AsyncIterator[None]:
    runner = web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=limits.idle,
        shutdown_timeout=limits.drain,
        max_line_size=8190,
        max_field_size=8190,
    )
    await runner.setup()
    acceptor = _Acceptor(runner, listening, context, limits)
    accepting = asyncio.create_task(acceptor.run())
    try:
        yield
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listening.close()
        await runner.cleanup()


class _Acceptor:
    """Accepts connections, shakes hands within bounds, and hands them to aiohttp's protocol."""

    def __init__(
        self,
        runner: web.AppRunner,
        listening: socket.socket,
        context: Callable[[], ssl.SSLContext] | None,
        limits: ListenerLimits,
    ) -> None:
        self._runner = runner
        self._listening = listening
        self._context = context
        self._limits = limits
        self._shaking: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(self._listening)
                except OSError:  # out of descriptors, or the peer has gone: neither ends a listener
                    await asyncio.sleep(0.05)
                    continue
                self._welcome(connection, _address(peer))
        finally:
            for task in self._shaking:
                task.cancel()
            await asyncio.gather(*self._shaking, return_exceptions=True)

    def _welcome(self, connection: socket.socket, address: str) -> None:
        if not self._has_room(address):
            connection.close()
            return
        task = asyncio.create_task(self._shake(connection))
        self._shaking[task] = address
        task.add_done_callback(self._shaking.pop)

    def _has_room(self, address: str) -> bool:
        server = self._runner.server
        transports = [each.transport for each in server.connections] if isinstance(server, web.Server) else []
        peers = [_address(each.get_extra_info("peername")) for each in transports if each is not None]
        held = Counter([*peers, *self._shaking.values()])
        return held.total() < self._limits.connections and held[address] < self._limits.per_address

    async def _shake(self, connection: socket.socket) -> None:
        server = self._runner.server
        if server is None:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        context = self._context() if self._context else None
        patience = self._limits.handshake if context else None
        try:
            connection.setblocking(False)
            await loop.connect_accepted_socket(server, connection, ssl=context, ssl_handshake_timeout=patience)
        except (OSError, ssl.SSLError, TimeoutError):
            connection.close()  # a failed handshake is the peer's affair; nothing was served


def _address(peer: object) -> str:
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""

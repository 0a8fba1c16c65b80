"""A local port of TCP, or a Unix socket.

Nothing is read from a program before the gateway has accepted its stream; one that is refused is broken off. Beyond the
bound, connections wait in the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

from agent.port import PortSettings, Refusals, described
from agent.quota import Quota
from agent.splice import Room, Splice, reset_when_closed
from agent.tunnel import Tunnels
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.listening import listen, listen_unix, remove_dead_socket
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import StreamAnswer

_log = logging.getLogger("sallyport.agent.ports")
_UNIX_MODE = 0o660
_BACKLOG = 1024  # a full one resets connections
_PAUSE = 0.05  # seconds, when the machine is out of descriptors


class TcpPort:
    """A local port of TCP, or a Unix socket."""

    def __init__(self, settings: PortSettings, tunnels: Tunnels, room: Room, clock: Clock) -> None:
        self.address: Any = None
        """Where it listens, once it does."""
        self._settings = settings
        self._tunnels = tunnels
        self._room = room
        self._quota = Quota(settings.connections)
        self._refusals = Refusals(settings.listen, settings.request, clock)

    def status(self) -> dict[str, Any]:
        return {**described(self._settings), "open": self._quota.taken, "refused": self._refusals.count}

    async def run(self) -> None:
        """Listen until cancelled; connections that are open stay. Raises `Fault(SETTING_INVALID)`."""
        with self._listen() as listening:
            self.address = listening.getsockname()
            try:
                async with asyncio.TaskGroup() as opening:
                    while True:
                        await self._quota.wait_for_room()
                        connection = await self._accept(listening)
                        opening.create_task(self._join(connection, self._quota.take()))
            finally:
                listening.close()
                if self._settings.path is not None:
                    remove_dead_socket(self._settings.path)

    def _listen(self) -> socket.socket:
        path = self._settings.path
        if path is not None:
            return listen_unix(path, _UNIX_MODE, _BACKLOG)
        address = self._settings.address
        return listen(address.host, address.port, _BACKLOG)

    async def _accept(self, listening: socket.socket) -> socket.socket:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listening)
                return connection
            except OSError:  # out of descriptors, or the program has gone: neither ends a port
                await asyncio.sleep(_PAUSE)

    async def _join(self, connection: socket.socket, leave: Callable[[], None]) -> None:
        """Ask for a stream, then join the program to it."""
        splice: Splice | None = None

        def take(stream: Stream, answer: StreamAnswer) -> Splice:
            nonlocal splice
            _log.debug("%s is joined, decision %s", self._settings.listen, answer.decision)
            splice = Splice(stream, self._room, leave)
            return splice

        try:
            await self._tunnels.open(self._settings.request, take)
            joined = cast(Splice, splice)  # an open stream was taken
            await asyncio.get_running_loop().connect_accepted_socket(lambda: joined, connection)
        except Fault as fault:
            self._refusals.tell(fault)
            _break_off(connection)
            leave()
        except BaseException as error:
            if splice is not None:
                splice.break_off(Reason.STREAM_ABORTED)
            _break_off(connection)
            leave()
            if not isinstance(error, OSError):  # the program has gone meanwhile
                raise


def _break_off(connection: socket.socket) -> None:
    if connection.fileno() >= 0:
        reset_when_closed(connection)
        connection.close()

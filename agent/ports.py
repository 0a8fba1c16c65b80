"""Local ports: a program of this machine uses one and speaks with a service of another node.

A port listens on loopback or a Unix socket, unless its settings say that others may use it too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from agent.port import PortSettings
from agent.splice import Room
from agent.tcp_port import TcpPort
from agent.tunnel import Tunnels
from agent.udp_port import UdpPort
from foundation.clock import Clock
from foundation.faults import Fault

_log = logging.getLogger("sallyport.agent.ports")


class Ports:
    """All local ports."""

    def __init__(self, ports: Sequence[PortSettings], tunnels: Tunnels, clock: Clock) -> None:
        self._tunnels = tunnels
        self._clock = clock
        self._room = Room(clock)
        self._ports = {settings: self._make(settings) for settings in ports}
        self._tasks: dict[PortSettings, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def __getitem__(self, settings: PortSettings) -> TcpPort | UdpPort:
        return self._ports[settings]

    async def run(self) -> None:
        """Listen until cancelled; connections that are open stay. Raises `Fault(SETTING_INVALID)`, in a group, when an
        address cannot be used."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for settings, port in self._ports.items():
                    self._tasks[settings] = self._group.create_task(port.run())
                await asyncio.Event().wait()
        finally:
            self._group = None

    def use(self, ports: Sequence[PortSettings]) -> None:
        """Listen at these from now on. Connections of others stay; a port that cannot listen says so in the log."""
        gone = [settings for settings in self._ports if settings not in ports]
        left = [self._tasks.pop(settings) for settings in gone if settings in self._tasks]
        for task in left:
            task.cancel()
        for settings in gone:
            del self._ports[settings]
        for settings in ports:
            if settings not in self._ports:
                port = self._ports[settings] = self._make(settings)
                if self._group is not None:
                    self._tasks[settings] = self._group.create_task(_run_behind(port, left))

    def status(self) -> list[dict[str, Any]]:
        """Of each: where it listens, what it leads to, how many use it, what was refused."""
        return [port.status() for port in self._ports.values()]

    def _make(self, settings: PortSettings) -> TcpPort | UdpPort:
        if settings.protocol == "udp":
            return UdpPort(settings, self._tunnels, self._clock)
        return TcpPort(settings, self._tunnels, self._room, self._clock)


async def _run_behind(port: TcpPort | UdpPort, left: Sequence[asyncio.Task[None]]) -> None:
    """Run `port` once those that were left have let their addresses go."""
    await asyncio.gather(*left, return_exceptions=True)
    try:
        await port.run()
    except Fault as fault:
        _log.error("a port does not listen: %s", fault)

"""A connection that is a tunnel and nothing else: what asyncio tells it, it hands on to its `Tunnel`."""

from __future__ import annotations

import asyncio
from typing import cast

from foundation.faults import Fault
from foundation.tunnel import Tunnel
from foundation.wire.streams import Hello


class TunnelProtocol(asyncio.Protocol):
    """Who derives from it sets `tunnel`, and says when to `begin`. What breaks the protocol is told to `broken`."""

    tunnel: Tunnel
    _transport: asyncio.Transport | None = None

    def begin(self, hello: Hello) -> None:
        """It leads to the right one: speak."""
        if self._transport is not None:
            self.tunnel.made(self._transport)
            self.tunnel.hello(hello.encode())

    def broken(self, fault: Fault) -> None:
        """What came is none of the protocol, or the tunnel's user refused it: end the connection."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of the class

    def data_received(self, data: bytes) -> None:
        try:
            self.tunnel.received(data)
        except Fault as fault:
            self.broken(fault)

    def pause_writing(self) -> None:
        self.tunnel.blocked()

    def resume_writing(self) -> None:
        self.tunnel.unblocked()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.tunnel.lost()

"""A local port of UDP: one stream for each address that a program sends from.

While the gateway has not answered, the first few datagrams of an address wait; the rest is dropped, and so is all of an
address that was refused a moment ago.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, cast

from agent.datagrams import DatagramSplice
from agent.port import PortSettings, Refusals, described
from agent.tunnel import Tunnels
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import StreamAnswer

_log = logging.getLogger("sallyport.agent.ports")
_WAITING = 16  # datagrams of one address
_AGAIN = 1.0  # seconds after a refusal
_LOOK = 4  # times in `idle` that somebody looks who has not been heard


class _Program:
    """One that sends from `address`."""

    def __init__(self) -> None:
        self.splice: DatagramSplice | None = None
        self.waiting: deque[bytes] = deque(maxlen=_WAITING)
        self.refused_at: float | None = None


class UdpPort(asyncio.DatagramProtocol):
    """Listens at `address`, once it does."""

    def __init__(self, settings: PortSettings, tunnels: Tunnels, clock: Clock) -> None:
        self.address: Any = None
        self._settings = settings
        self._tunnels = tunnels
        self._clock = clock
        self._refusals = Refusals(settings.listen, settings.request, clock)
        self._programs: dict[Any, _Program] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._opening: asyncio.TaskGroup | None = None
        self._takes = True

    def status(self) -> dict[str, Any]:
        joined = sum(program.splice is not None for program in self._programs.values())
        return {**described(self._settings), "open": joined, "refused": self._refusals.count}

    async def run(self) -> None:
        """Listen until cancelled. Raises `Fault(SETTING_INVALID)`."""
        where = self._settings.address
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: self, local_addr=(where.host, where.port)
            )
        except OSError as error:
            raise Fault(Reason.SETTING_INVALID, f"cannot listen: {error.strerror}", field=str(where)) from error
        try:
            async with asyncio.TaskGroup() as self._opening:
                while True:
                    await self._clock.sleep(min(self._settings.idle / _LOOK, _AGAIN))
                    self._look()
        finally:
            self._opening = None
            transport.close()
            for program in list(self._programs.values()):
                if program.splice is not None:
                    program.splice.end()

    # --- asyncio's side -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.address = transport.get_extra_info("sockname")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        program = self._programs.get(addr)
        if program is None:
            self._begin(addr, data)
        elif program.splice is not None:
            program.splice.send(data)
        elif program.refused_at is None and len(program.waiting) < _WAITING:
            program.waiting.append(data)

    def error_received(self, exc: Exception) -> None:
        """A program that we answered is gone."""

    def pause_writing(self) -> None:
        self._takes = False

    def resume_writing(self) -> None:
        self._takes = True

    # --- programs -------------------------------------------------------------------------------------------

    def _begin(self, address: Any, data: bytes) -> None:
        if self._opening is None or len(self._programs) >= self._settings.connections:
            return
        program = self._programs[address] = _Program()
        program.waiting.append(data)
        self._opening.create_task(self._join(address, program))

    async def _join(self, address: Any, program: _Program) -> None:
        def gone() -> None:
            self._programs.pop(address, None)

        def take(stream: Stream, answer: StreamAnswer) -> DatagramSplice:
            program.splice = DatagramSplice(stream, lambda data: self._answer(address, data), gone, self._clock)
            while program.waiting:
                program.splice.send(program.waiting.popleft())
            return program.splice

        try:
            await self._tunnels.open(self._settings.request, take)
        except Fault as fault:
            self._refusals.tell(fault)
            program.refused_at = self._clock.monotonic()
            program.waiting.clear()
        except BaseException:
            gone()
            raise

    def _answer(self, address: Any, data: bytes) -> None:
        if self._transport is not None and self._takes:
            self._transport.sendto(data, address)

    def _look(self) -> None:
        """End what nobody uses, and let those ask again who were refused."""
        now = self._clock.monotonic()
        for address, program in list(self._programs.items()):
            if program.splice is not None and now - program.splice.used_at >= self._settings.idle:
                program.splice.end()
            elif program.refused_at is not None and now - program.refused_at >= _AGAIN:
                self._programs.pop(address, None)

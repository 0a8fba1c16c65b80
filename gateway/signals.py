"""What the service manager, or an operator, asks of the main process while it serves."""

from __future__ import annotations

import asyncio
import signal
from enum import Enum


class Asked(Enum):
    """What for."""

    STOP = "stop"  # SIGTERM, SIGINT
    RELOAD = "reload"  # SIGHUP
    UPGRADE = "upgrade"  # SIGUSR2


class Signals:
    """Collects them; the same one twice before it is taken up is one."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._reload = False
        self._upgrade = False
        self._any = asyncio.Event()

    def install(self) -> None:
        """Take the process's signals. Needs a running event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask, Asked.STOP)
        loop.add_signal_handler(signal.SIGHUP, self.ask, Asked.RELOAD)
        loop.add_signal_handler(signal.SIGUSR2, self.ask, Asked.UPGRADE)

    def ask(self, what: Asked) -> None:
        """As if the signal had come."""
        if what is Asked.STOP:
            self.stop.set()
        self._reload |= what is Asked.RELOAD
        self._upgrade |= what is Asked.UPGRADE
        self._any.set()

    async def next(self) -> Asked:
        """The next to do; a stop comes before all others."""
        await self._any.wait()
        if self.stop.is_set():
            return Asked.STOP
        if self._reload:
            self._reload = False
            found = Asked.RELOAD
        else:
            self._upgrade = False
            found = Asked.UPGRADE
        if not (self._reload or self._upgrade):
            self._any.clear()
        return found

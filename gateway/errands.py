"""What the main process is asked to do while it serves: by a signal, or by an operator over the API. Both are one way.

An errand waits its turn; what came of it is kept for whoever asked.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any

from foundation.faults import Fault, problem
from foundation.reasons import Reason

SYSTEM = "system"  # who sends signals: the kernel does not say
MAX_WAITING = 16
MAX_KEPT = 16


class Asked(Enum):
    """What for."""

    STOP = "stop"  # SIGTERM, SIGINT
    RELOAD = "reload"  # SIGHUP
    UPGRADE = "upgrade"  # SIGUSR2


class Progress(Enum):
    """How far an errand is."""

    WAITS = "waits"
    BEGUN = "begun"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Errand:
    """`actor` asked; `taken` is what was taken up, whatever was `refused` of it."""

    number: int
    asked: Asked
    actor: str
    progress: Progress = Progress.WAITS
    taken: tuple[str, ...] = ()
    refused: Fault | None = None

    def done(self, taken: tuple[str, ...], refused: Fault | None = None) -> None:
        self.progress, self.taken, self.refused = Progress.DONE, taken, refused

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "asked": self.asked.value,
            "actor": self.actor,
            "progress": self.progress.value,
            "taken": list(self.taken),
            "problem": problem(self.refused) if self.refused else None,
        }


class Errands:
    """Those that wait, and the last that were taken up."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._asked = 0
        self._waiting: list[Errand] = []
        self._taken_up: deque[Errand] = deque(maxlen=MAX_KEPT)
        self._any = asyncio.Event()

    def listen_to_signals(self) -> None:
        """Take the process's signals. Needs a running event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask, Asked.STOP)
        loop.add_signal_handler(signal.SIGHUP, self.ask, Asked.RELOAD)
        loop.add_signal_handler(signal.SIGUSR2, self.ask, Asked.UPGRADE)

    def ask(self, asked: Asked, actor: str = SYSTEM) -> Errand:
        """Note it; the same of the same actor twice before it is taken up is one. Raises `Fault(OVERLOADED)` when too
        many wait, but to no signal."""
        found = next((each for each in self._waiting if (each.asked, each.actor) == (asked, actor)), None)
        if found is None:
            if len(self._waiting) >= MAX_WAITING and actor != SYSTEM:
                raise Fault(Reason.OVERLOADED, f"{MAX_WAITING} others wait to be taken up")
            self._asked += 1
            found = Errand(self._asked, asked, actor)
            if asked is not Asked.STOP:
                self._waiting.append(found)
        if asked is Asked.STOP:
            self.stop.set()
        self._any.set()
        return found

    async def next(self) -> Errand | None:
        """The next to do: reloads first, for an upgrade reads everything anew. None: stop, before all others."""
        await self._any.wait()
        if self.stop.is_set():
            return None
        found = next((each for each in self._waiting if each.asked is Asked.RELOAD), self._waiting[0])
        self._waiting.remove(found)
        if not self._waiting:
            self._any.clear()
        found.progress = Progress.BEGUN
        self._taken_up.append(found)
        return found

    @property
    def known(self) -> tuple[Errand, ...]:
        """Those that were taken up, the oldest first, and those that wait."""
        return (*self._taken_up, *self._waiting)

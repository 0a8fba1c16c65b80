"""One worker as the main process sees it: how far it is, what it owes, what it is asked for."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation.decisionlog.closing import Closer
from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.channel import Channel
from gateway.control import (
    Acknowledged,
    Answered,
    Configure,
    Configured,
    Failed,
    Frames,
    Loaded,
    Message,
    NotLoaded,
)
from gateway.handover import HandedWorker
from gateway.plane import PlaneSettings
from gateway.processes import Process

WORKER_MODULE = "gateway.worker"
_LOG = logging.getLogger(__name__)
Reported = Callable[["Worker", Message | None], None]


@dataclass(frozen=True, slots=True)
class Pool:
    """What the workers are given: how many there are, how each is configured (by its number), the sockets they share,
    and who closes what they keep of their decisions."""

    count: int
    configure: Callable[[int], Configure]
    listening: Sequence[socket.socket]
    closer: Closer
    settings: PlaneSettings
    ended: Callable[[int], None] = lambda number: None  # a worker of this number is gone
    module: str = WORKER_MODULE

    @property
    def decisions(self) -> Path:
        return self.settings.decisions.directory


class Lineage:
    """A worker and those that replace it when it dies, one after the other. `settled` is done when the first is ready,
    or has the `Fault` of why it cannot be."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.retiring = False
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, fault: Fault | None) -> bool:
        """Whether that had been open."""
        if self.settled.done():
            return False
        self.settled.set_exception(fault) if fault else self.settled.set_result(None)
        self.settled.exception()  # it is somebody's to look at, or nobody's
        return True


class Worker:
    """One worker as the main process sees it."""

    def __init__(self, lineage: Lineage, number: int, process: Process, on_report: Reported) -> None:
        """`on_report` is told of each report, and with None when the channel has ended."""
        self.lineage = lineage
        self.number = number
        self.process = process
        self.channel: Channel | None = None
        self.following = False  # it gets every change as it comes
        self.ready = False  # it may accept
        self.draining = False
        self.killed = False  # by us, for it was silent
        self.handed_over = False  # it is another main process's from now on
        self.places: tuple[int, ...] = ()  # of the sockets that it accepts from
        self.holds: set[int] = set()  # the revisions that it could enforce
        self.acknowledged = 0
        self.owes = 0  # the newest change of trust that it must acknowledge
        self.behind: list[Message] | None = None  # what came since it began to be told the present state
        self.fault: Fault | None = None  # why it ends, by its own word
        self._on_report = on_report
        self._heard = 0
        self._mute = self._silent = 0
        self._waits: dict[str, asyncio.Future[bytes]] = {}

    async def open(self, end: socket.socket, begun: bytes = b"") -> None:
        """Speak over `end`; `begun` is what somebody before us had read of a report."""
        self.channel = await Channel.open(end, Frames.of_reports(begun), self._take, self._ended)

    def send(self, order: Message, *, large: bool = False) -> None:
        if self.channel is not None:
            self.channel.send(order, large=large)

    async def wait_for(self, what: str, seconds: float) -> bytes:
        """Until it reports `what`. Raises `Fault` when it ends before, or takes longer."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waits[what] = future
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise Fault(Reason.INTERNAL, f"worker {self.number} does not answer: {what}") from None
        finally:
            self._waits.pop(what, None)

    def resolve(self, what: str, value: bytes = b"", fault: Fault | None = None) -> None:
        future = self._waits.get(what)
        if future is not None and not future.done():
            future.set_exception(fault) if fault else future.set_result(value)

    def tick(self) -> tuple[int, int]:
        """For how many ticks it has said nothing: in all, and of those while it owed something."""
        heard = self.channel.heard if self.channel else 0
        self._mute = self._mute + 1 if heard == self._heard else 0
        owing = self._mute and self.acknowledged < self.owes
        self._silent = self._silent + 1 if owing else 0
        self._heard = heard
        return self._mute, self._silent

    @property
    def ended(self) -> bool:
        return self.process.code is not None or self.channel is None or self.channel.is_closed

    def check_alive(self) -> None:
        """Raises `Fault` with why it ended, when it has."""
        if self.ended:
            raise self.fault or Fault(Reason.INTERNAL, f"worker {self.number} ended")

    async def release(self) -> HandedWorker:
        """Let go of it, so that another main process can go on with it."""
        descriptor, begun = await self.channel.release() if self.channel else (-1, b"")
        return HandedWorker(self.process.pid, self.number, descriptor, begun, self.acknowledged)

    def kill(self) -> None:
        self.process.kill()

    def _take(self, message: Message) -> None:
        match message:
            case Acknowledged():
                self.acknowledged = message.sequence
            case Configured():
                self.resolve("configured")
            case Loaded():
                self.resolve(f"loaded {message.revision}")
            case NotLoaded():
                self.resolve(f"loaded {message.revision}", fault=_fault(message.reason, message.detail))
            case Answered():
                self.resolve(f"answered {message.number}", message.body)
            case Failed():
                self.fault = _fault(message.reason, message.detail, message.field)
        self._on_report(self, message)

    def _ended(self, fault: Fault | None) -> None:
        """The channel is closed, by what it said or because it is gone."""
        if fault is not None:
            _LOG.error("worker %d is ended: %s", self.number, fault)
            self.kill()
        self._on_report(self, None)
        gone = self.fault or Fault(Reason.INTERNAL, f"worker {self.number} ended")
        for future in list(self._waits.values()):
            if not future.done():
                future.set_exception(gone)


def _fault(code: str, detail: str, field: str = "") -> Fault:
    try:
        return Fault(Reason.from_code(code), detail, field=field)
    except KeyError:
        return Fault(Reason.INTERNAL, detail, field=field)

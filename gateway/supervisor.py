"""Starts the workers, tells all of them the same in the same order, and replaces what dies.

Laws held here:
- a worker accepts nothing before it has the whole present state and the enforced revision;
- a change goes to every worker before anything else is done with it, and counts as in force once each has acknowledged
  it;
- a worker that says nothing for `silence` while a change of trust is not in force in it is killed: what it carries is
  cut then, which is what the change may have asked for. Silence is counted in ticks of our own loop, so that a machine
  which stands still kills nobody; an idle worker owes nothing and is left alone;
- a revision is enforced in all workers or in none; a worker that cannot load the enforced one carries nothing;
- what a worker does not read is bounded (`gateway.channel`), and so are the pauses between attempts to start one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from foundation.clock import Clock
from foundation.decisionlog.closing import Closer
from foundation.decisionlog.folders import worker_folder
from foundation.decisionlog.ids import is_decision_id
from foundation.decisionlog.segments import OPEN_SUFFIX
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.identity import Change, Heartbeat, PolicyPublished
from foundation.reasons import Reason
from gateway.channel import Channel
from gateway.control import (
    LAST_WORD,
    Acknowledged,
    Answered,
    Ask,
    Beat,
    Changed,
    Configure,
    Configured,
    Drain,
    Enforce,
    Failed,
    Forget,
    Frames,
    Listen,
    Load,
    Loaded,
    Message,
    NotLoaded,
    Renewed,
    SegmentFull,
)
from gateway.plane import PlaneSettings
from gateway.processes import Process
from gateway.scrape import Told
from gateway.snapshot import SnapshotStore

TICK_SECONDS = 0.05
BEAT_SECONDS = 1.0
HUNG_SECONDS = 15.0  # without a word, even though nothing is owed but beats
_HUNG_TICKS = round(HUNG_SECONDS / TICK_SECONDS)
LOAD_SECONDS = 60.0
ASK_SECONDS = 2.0
START_SECONDS = 60.0
PAUSE_FIRST, PAUSE_LAST = 0.1, 5.0
LIVED = 10.0  # seconds after which a death is no failed start
TOLD_AT_ONCE = 256
WORKER_MODULE = "gateway.worker"
_LOG = logging.getLogger(__name__)


class SupervisorMetrics(Protocol):
    """What is counted."""

    def worker_ended(self, how: str) -> None:
        """Unasked: `killed` by us, for it was silent, or `died`."""

    def workers_ready(self, count: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Pool:
    """What the workers are given: how many there are, how each is configured (by its number), the sockets they share,
    and who closes what they keep of their decisions."""

    count: int
    configure: Callable[[int], Configure]
    listening: Sequence[socket.socket]
    closer: Closer
    settings: PlaneSettings
    module: str = WORKER_MODULE

    @property
    def decisions(self) -> Path:
        return self.settings.decisions.directory


class Worker:
    """One worker as the main process sees it."""

    def __init__(self, number: int, process: Process, on_report: Callable[[Worker, Message | None], None]) -> None:
        self.number = number
        self.process = process
        self.channel: Channel | None = None
        self.following = False  # it gets every change as it comes
        self.ready = False  # it may accept
        self.draining = False
        self.killed = False  # by us, for it was silent
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

    async def open(self, end: socket.socket) -> None:
        self.channel = await Channel.open(end, Frames.of_reports(), self._take, self._ended)

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


class Lineage:
    """A worker and those that replace it, one after the other."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.retiring = False
        self.worker: Worker | None = None


class Supervisor:
    """The workers of one gateway. Keep `run` running; `accept` lets them accept."""

    def __init__(self, pool: Pool, facts: SnapshotStore, time: Clock, metrics: SupervisorMetrics) -> None:
        self._pool = pool
        self._facts = facts
        self._time = time
        self._metrics = metrics
        self._workers: list[Worker] = []
        self._lineages: list[Lineage] = []
        self._sequence = 0
        self._question = itertools.count(1)
        self._enforced: PolicyPublished | None = None
        self._candidate: PolicyPublished | None = None
        self._accepting = False
        self._numbers: set[int] = set()
        self._ready = asyncio.Event()
        if not pool.count:
            self._ready.set()
        self.last_words: Callable[[Told], None] = _unheard
        self._changed = asyncio.Event()  # some worker got further, or ended

    # --- its life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers, until cancelled; then they are killed. Raises the `Fault` of one that cannot start at
        first."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._pool.count):
                lineage = Lineage(self._pool)
                self._lineages.append(lineage)
                group.create_task(self._keep(lineage))
            group.create_task(self._watch())

    async def wait_ready(self) -> None:
        """Until every worker could accept."""
        await self._ready.wait()

    def accept(self) -> None:
        """From now on the sockets listen, and whoever is ready accepts."""
        for each in self._pool.listening:
            each.listen(self._pool.settings.listener.backlog)
        self._accepting = True
        self._part_sockets()

    async def drain(self, seconds: float) -> None:
        """Nobody listens any more; return when all that was under way has ended, `seconds` at most."""
        self._accepting = False
        for each in self._pool.listening:
            each.close()
        for lineage in self._lineages:
            lineage.retiring = True
        for worker in self._workers:
            self._drain(worker, seconds, 0.0)
        try:
            async with asyncio.timeout(seconds + 1.0):
                while self._workers:
                    await self._next_change()
        except TimeoutError:
            _LOG.warning("%d workers did not end in time", len(self._workers))

    @property
    def waits_for(self) -> str:
        """What is missing before every worker carries its part; empty when nothing is."""
        ready = sum(worker.ready for worker in self._workers)
        return "" if ready >= self._pool.count else f"{self._pool.count - ready} of {self._pool.count} workers"

    # --- what is told to all ----------------------------------------------------------------------------

    async def apply(self, change: Change) -> None:
        """Tell `change`; returns at once, unless somebody has much to read still."""
        self._sequence += 1
        order = Changed(self._sequence, change)
        owed = 0 if isinstance(change, Heartbeat) else self._sequence
        for worker in self._workers:
            if worker.following:
                worker.owes = owed or worker.owes
                worker.send(order)
            elif worker.behind is not None:
                worker.behind.append(order)
        for worker in self._workers:
            if worker.channel is not None and worker.channel.is_full:
                await worker.channel.wait_drained()

    async def load(self, published: PolicyPublished) -> None:
        """Load a revision, which was verified, in every worker. Raises the first `Fault`; then none holds it."""
        self._candidate = published  # whoever is being brought up loads it too
        following = [worker for worker in self._workers if worker.following]
        done = await asyncio.gather(*(self._load(worker, published) for worker in following), return_exceptions=True)
        for worker, how in zip(following, done, strict=True):
            if isinstance(how, Fault) and not worker.ended:
                self._withdraw(published)
                raise how

    def _withdraw(self, published: PolicyPublished) -> None:
        self._candidate = None
        for worker in self._workers:
            worker.holds.discard(published.revision)
            worker.send(Forget(published.revision))

    def enforce(self, revision: int) -> None:
        """From now on every worker decides by the loaded `revision`."""
        if self._candidate is None or self._candidate.revision != revision:
            raise ValueError("load it first")
        self._enforced, self._candidate = self._candidate, None
        self._sequence += 1
        for worker in self._workers:
            if worker.following:
                worker.owes = self._sequence
                worker.send(Enforce(self._sequence, revision))

    async def wait_in_force(self) -> None:
        """Until everything that was told by now is in force in every worker that follows."""
        wanted = self._sequence
        while any(worker.following and worker.acknowledged < wanted for worker in self._workers):
            await self._next_change()

    def renewed(self) -> None:
        """The certificate changed on disk."""
        for worker in self._workers:
            worker.send(Renewed())

    async def ask(self, question: str, body: bytes = b"") -> list[Told]:
        """Every worker's answer. Who does not answer in time is left out."""
        asked = [worker for worker in self._workers if worker.following]
        answers = await asyncio.gather(*(self._ask(each, question, body) for each in asked), return_exceptions=True)
        return [
            Told(worker.number, worker.process.pid, answer)
            for worker, answer in zip(asked, answers, strict=True)
            if isinstance(answer, bytes)
        ]

    @property
    def living(self) -> set[int]:
        """The process IDs of all workers."""
        return {worker.process.pid for worker in self._workers}

    # --- one worker ---------------------------------------------------------------------------------------

    async def _keep(self, lineage: Lineage) -> None:
        """One worker after the other, until the lineage retires."""
        pause = PAUSE_FIRST
        while not lineage.retiring:
            began = self._time.monotonic()
            fault = await self._live(lineage)
            if fault is not None and not self._ready.is_set():
                raise fault
            if lineage.retiring:
                return
            if self._time.monotonic() - began > LIVED:
                pause = PAUSE_FIRST
            await self._time.sleep(pause)
            pause = min(2 * pause, PAUSE_LAST)

    async def _live(self, lineage: Lineage) -> Fault | None:
        """One worker from its start to its end. Why it could not serve, by its own word."""
        pool, number = lineage.pool, self._take_number()
        folder = worker_folder(pool.decisions, number)
        try:
            make_private_folder(folder)
            await pool.closer.mend(folder)
            worker = lineage.worker = await self._start(pool, number)
            try:
                await self._bring_up(worker, pool)
                await worker.process.ended.wait()
            except (Fault, TimeoutError) as error:
                worker.fault = worker.fault or (
                    error if isinstance(error, Fault) else Fault(Reason.INTERNAL, "it does not start")
                )
            finally:
                self._bury(worker)
                worker.kill()
                await worker.process.ended.wait()
            self._say_how_it_ended(worker)
            await pool.closer.mend(folder)
            return worker.fault
        finally:
            self._numbers.discard(number)

    async def _start(self, pool: Pool, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = Process.start(pool.module, [theirs, *pool.listening])
        worker = Worker(number, process, self._reported)
        self._workers.append(worker)
        await worker.open(ours)
        return worker

    async def _bring_up(self, worker: Worker, pool: Pool) -> None:
        """Configured, policy, facts, then whatever came meanwhile. Raises `Fault`."""
        worker.send(pool.configure(worker.number), large=True)
        await worker.wait_for("configured", START_SECONDS)
        await self._tell_present(worker)
        while lacking := [each for each in self._revisions() if each.revision not in worker.holds]:
            await self._load(worker, lacking[0])
        self._let_follow(worker)
        async with asyncio.timeout(START_SECONDS):
            while worker.acknowledged < worker.owes:
                await self._next_change()
                worker.check_alive()
        worker.ready = True
        self._part_sockets()

    def _revisions(self) -> list[PolicyPublished]:
        return [each for each in (self._enforced, self._candidate) if each is not None]

    def _let_follow(self, worker: Worker) -> None:
        """What came meanwhile, then the revision; from now on it is told everything with all others."""
        for order in worker.behind or ():
            worker.send(order)
        worker.behind, worker.following = None, True
        self._sequence += 1
        worker.owes = self._sequence
        if self._enforced is not None:
            worker.send(Enforce(self._sequence, self._enforced.revision))
        else:
            worker.send(Changed(self._sequence, Heartbeat(self._facts.heartbeat_at, self._facts.current.numbers)))

    async def _tell_present(self, worker: Worker) -> None:
        """The changes that make the present facts, in pieces; what comes meanwhile is told behind them."""
        worker.behind = []
        present = self._facts.present()
        while told := list(itertools.islice(present, TOLD_AT_ONCE)):
            for change in told:
                worker.send(Changed(0, change))
            if worker.channel is not None:
                await worker.channel.wait_drained()
            await asyncio.sleep(0)
            worker.check_alive()

    async def _load(self, worker: Worker, published: PolicyPublished) -> None:
        worker.send(Load(published.revision, published.bundle, published.at), large=True)
        await worker.wait_for(f"loaded {published.revision}", LOAD_SECONDS)
        worker.holds.add(published.revision)

    async def _ask(self, worker: Worker, question: str, body: bytes) -> bytes:
        number = next(self._question)
        worker.send(Ask(number, question, body))
        return await worker.wait_for(f"answered {number}", ASK_SECONDS)

    def _reported(self, worker: Worker, report: Message | None) -> None:
        if isinstance(report, SegmentFull):
            self._close_segment(worker, report.name)
        elif isinstance(report, Answered) and report.number == LAST_WORD:
            self.last_words(Told(worker.number, worker.process.pid, report.body))
        self._changed.set()

    def _close_segment(self, worker: Worker, name: str) -> None:
        if is_decision_id(name):
            path = worker_folder(self._pool.decisions, worker.number) / f"{name}{OPEN_SUFFIX}"
            self._pool.closer.submit(path)

    def _drain(self, worker: Worker, seconds: float, grace: float) -> None:
        worker.draining, worker.ready = True, False
        worker.send(Drain(seconds, grace))

    def _bury(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.ready = worker.following = False
        if worker.channel is not None:
            worker.channel.close()
        self._part_sockets()

    def _say_how_it_ended(self, worker: Worker) -> None:
        if worker.draining:
            return
        self._metrics.worker_ended("killed" if worker.killed else "died")
        _LOG.error("worker %d ended with code %s", worker.number, worker.process.code)

    def _take_number(self) -> int:
        number = next(each for each in itertools.count() if each not in self._numbers)
        self._numbers.add(number)
        return number

    # --- who accepts, and who is silent ---------------------------------------------------------------------

    def _part_sockets(self) -> None:
        """Every socket to one worker that is ready, so that none waits for a worker that is being replaced."""
        ready = [worker for worker in self._workers if worker.ready]
        self._metrics.workers_ready(len(ready))
        if len(ready) >= self._pool.count:
            self._ready.set()
        self._changed.set()
        if self._accepting:
            for worker, places in zip(ready, parted(len(self._pool.listening), len(ready)), strict=True):
                if places != worker.places:
                    worker.places = places
                    worker.send(Listen(places))

    async def _watch(self) -> None:
        ticks, beat_every = 0, round(BEAT_SECONDS / TICK_SECONDS)
        while True:
            await self._time.sleep(TICK_SECONDS)
            ticks += 1
            for worker in list(self._workers):
                if worker.following:
                    self._look_at(worker, beat=ticks % beat_every == 0)

    def _look_at(self, worker: Worker, *, beat: bool) -> None:
        if beat:
            worker.send(Beat(self._time.now()))
        mute, silent = worker.tick()
        if not worker.killed and (
            mute >= _HUNG_TICKS or silent >= math.ceil(self._pool.settings.processes.silence / TICK_SECONDS)
        ):
            _LOG.error("worker %d is killed: it says nothing, and may not have what is told", worker.number)
            worker.killed = True
            worker.kill()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _unheard(told: Told) -> None:
    pass


def parted(sockets: int, workers: int) -> Iterable[tuple[int, ...]]:
    """The places of `sockets` listening sockets, dealt out to `workers`."""
    return [tuple(range(first, sockets, workers)) for first in range(workers)] if workers else []


def _fault(code: str, detail: str, field: str = "") -> Fault:
    try:
        return Fault(Reason.from_code(code), detail, field=field)
    except KeyError:
        return Fault(Reason.INTERNAL, detail, field=field)

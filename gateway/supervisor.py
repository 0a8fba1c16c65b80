"""Starts the workers, and replaces what dies. What they are told is in `gateway.orders`.

Laws held here:
- a worker accepts nothing before it has the whole present state and the enforced revision;
- a worker that says nothing for `silence` while a change of trust is not in force in it is killed: what it carries is
  cut then, which is what the change may have asked for. Silence is counted in ticks of our own loop, so that a machine
  which stands still kills nobody; an idle worker owes nothing and is left alone;
- a worker that cannot load the enforced revision carries nothing;
- what a worker does not read is bounded (`gateway.channel`), and so are the pauses between attempts to start one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from foundation.clock import Clock
from foundation.decisionlog.folders import worker_folder
from foundation.decisionlog.ids import is_decision_id
from foundation.decisionlog.segments import OPEN_SUFFIX
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.reasons import Reason
from gateway.control import (
    LAST_WORD,
    Acknowledged,
    Answered,
    Beat,
    Drain,
    Listen,
    Message,
    SegmentFull,
)
from gateway.handover import HandedWorker, Handover
from gateway.orders import Orders
from gateway.processes import Process
from gateway.scrape import Told
from gateway.snapshot import SnapshotStore
from gateway.supervised import Lineage, Pool, Worker

TICK_SECONDS = 0.05
BEAT_SECONDS = 1.0
HUNG_SECONDS = 15.0  # without a word, even though nothing is owed but beats
_HUNG_TICKS = round(HUNG_SECONDS / TICK_SECONDS)
START_SECONDS = 60.0
PAUSE_FIRST, PAUSE_LAST = 0.1, 5.0
MAX_NUMBERS = 128  # workers at one time, those that retire included
RETIRE_GRACE = 2.0
RELEASE_SECONDS = 1.0
LIVED = 10.0  # seconds after which a death is no failed start
_LOG = logging.getLogger(__name__)


class SupervisorMetrics(Protocol):
    """What is counted."""

    def worker_ended(self, how: str) -> None:
        """Unasked: `killed` by us, for it was silent, or `died`."""

    def workers_ready(self, count: int) -> None: ...


class Supervisor:
    """The workers of one gateway. Keep `run` running; `accept` lets them accept."""

    def __init__(
        self,
        pool: Pool,
        facts: SnapshotStore,
        time: Clock,
        metrics: SupervisorMetrics,
        left: Handover | None = None,
    ) -> None:
        """`left` are the workers of the main process before us: they serve until ours take over."""
        self._left = left.workers if left else ()
        self._pool = pool
        self._time = time
        self._metrics = metrics
        self._workers: list[Worker] = []
        self._lineages: list[Lineage] = []
        self._group: asyncio.TaskGroup | None = None
        self.orders = Orders(self._workers, facts, left.sequence if left else 0)
        self._accepting = False
        self._numbers = {each.number for each in self._left}
        self._started = asyncio.Event()
        self.last_words: Callable[[Told], None] = lambda told: None
        self._changed = asyncio.Event()  # some worker got further, or ended

    # --- its life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers, until cancelled; then they are killed."""
        async with asyncio.TaskGroup() as self._group:
            for each in self._left:
                await self._adopt(each, self._group)
            self._lineages = self._begin(self._pool)
            self._started.set()
            await self._watch()

    async def wait_started(self) -> None:
        """Until there is somebody to tell changes to: those of before us hear every one from then on."""
        await self._started.wait()

    async def wait_ready(self) -> None:
        """Until every worker could accept. Raises the `Fault` of one that cannot start."""
        await self._started.wait()
        await _all_settled(self._lineages)

    def accept(self) -> None:
        """From now on the sockets listen, and whoever is ready accepts."""
        for each in self._pool.listening:
            each.listen(self._pool.settings.listener.backlog)
        self._accepting = True
        self._retire([worker for worker in self._workers if worker.lineage not in self._lineages])

    async def replace(self, pool: Pool) -> None:
        """Carry on by `pool`: its workers take over once all of them are ready, and those before retire, which loses
        nothing that is under way. Raises the `Fault` of one that cannot start; then nothing has changed."""
        lineages = self._begin(pool)
        try:
            await _all_settled(lineages)
        except BaseException:
            self._give_up(lineages)
            raise
        before, self._lineages, self._pool = self._lineages, lineages, pool
        self._retire([worker for worker in self._workers if worker.lineage in before])
        for lineage in before:
            lineage.retiring = True

    async def hand_over(self) -> tuple[int, tuple[HandedWorker, ...]]:
        """The last order's sequence, and the workers that serve on when this process is another. From now on nothing is
        told; whoever had not come up is gone."""
        for lineage in self._lineages:
            lineage.retiring = True
        handed = []
        for worker in list(self._workers):
            worker.handed_over = worker.following and not worker.ended
            if worker.handed_over:
                handed.append(await self._release(worker))
        return self.orders.sequence, tuple(each for each in handed if each is not None)

    async def _release(self, worker: Worker) -> HandedWorker | None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                return await worker.release()
        except TimeoutError:
            _LOG.error("worker %d does not read, and is left behind", worker.number)
            worker.kill()
            return None

    async def _adopt(self, left: HandedWorker, group: asyncio.TaskGroup) -> None:
        """Take a worker of before us on; when this returns, it is told what all are told."""
        try:
            worker = Worker(Lineage(self._pool), left.number, Process(left.pid), self._reported)
        except ProcessLookupError:  # it ended before we were there
            os.close(left.channel)
            self._numbers.discard(left.number)
            self._pool.ended(left.number)
            await self._pool.closer.mend(worker_folder(self._pool.decisions, left.number))
            return
        worker.lineage.retiring = worker.following = worker.ready = True
        worker.acknowledged = left.acknowledged
        self._workers.append(worker)
        await worker.open(socket.socket(fileno=left.channel), left.begun)
        group.create_task(self._see_out(worker))

    async def _see_out(self, worker: Worker) -> None:
        await self._outlive(worker, worker.process.ended.wait())
        self._numbers.discard(worker.number)

    def _begin(self, pool: Pool) -> list[Lineage]:
        if self._group is None:
            raise RuntimeError("it does not run")
        if len(self._numbers) + pool.count > MAX_NUMBERS:
            raise Fault(Reason.OVERLOADED, "too many workers of before are still retiring", field="gateway.retire")
        lineages = [Lineage(pool) for _ in range(pool.count)]
        for lineage in lineages:
            self._group.create_task(self._keep(lineage))
        return lineages

    def _give_up(self, lineages: list[Lineage]) -> None:
        for lineage in lineages:
            lineage.retiring = True
        for worker in self._workers:
            if worker.lineage in lineages:
                worker.draining = True
                worker.kill()

    def _retire(self, workers: list[Worker]) -> None:
        """Others take over the sockets; what these carry may go on for a while, under the same law as ever."""
        for worker in workers:
            worker.ready = False
        self._part_sockets()
        for worker in workers:
            self._drain(worker, self._pool.settings.processes.retire, RETIRE_GRACE)

    async def drain(self, seconds: float) -> None:
        """Nobody listens any more; return when all that was under way has ended, `seconds` at most."""
        self._accepting = False
        for each in self._pool.listening:
            each.close()
        for lineage in self._lineages:
            lineage.retiring = True
            lineage.settle(Fault(Reason.DRAINING))
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
        return "" if self.ready >= self.wanted else f"{self.wanted - self.ready} of {self.wanted} workers"

    @property
    def ready(self) -> int:
        """How many workers accept, or could."""
        return len(self._carriers())

    @property
    def wanted(self) -> int:
        """How many there should be."""
        return self._pool.count

    @property
    def retiring(self) -> int:
        """How many workers of before let end what they carry."""
        return sum(worker.lineage.retiring for worker in self._workers)

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
            if lineage.settle(fault) or lineage.retiring:
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
            worker = await self._start(lineage, number)
            await self._outlive(worker, self._serve(worker, pool))
            return worker.fault
        finally:
            self._numbers.discard(number)

    async def _outlive(self, worker: Worker, serving: Coroutine[Any, Any, Any]) -> None:
        """`serving`, then its end, by our hand if need be. Of one that was handed over, the end is not ours to see."""
        try:
            await serving
        except Fault as fault:
            worker.fault = worker.fault or fault
        finally:
            if not worker.handed_over:
                self._bury(worker)
                worker.kill()
                await worker.process.ended.wait()
        self._say_how_it_ended(worker)
        self._pool.ended(worker.number)
        await self._pool.closer.mend(worker_folder(self._pool.decisions, worker.number))

    async def _serve(self, worker: Worker, pool: Pool) -> None:
        await self._bring_up(worker, pool)
        worker.lineage.settle(None)
        await worker.process.ended.wait()

    async def _start(self, lineage: Lineage, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = Process.start(lineage.pool.module, [theirs, *lineage.pool.listening])
        worker = Worker(lineage, number, process, self._reported)
        self._workers.append(worker)
        await worker.open(ours)
        return worker

    async def _bring_up(self, worker: Worker, pool: Pool) -> None:
        """Configured, then told everything. Raises `Fault`."""
        worker.send(pool.configure(worker.number), large=True)
        await worker.wait_for("configured", START_SECONDS)
        await self.orders.bring_up(worker)
        while worker.acknowledged < worker.owes:  # `_watch` kills one that says nothing
            await self._next_change()
            worker.check_alive()
        worker.ready = True
        self._part_sockets()

    def _reported(self, worker: Worker, report: Message | None) -> None:
        if isinstance(report, Acknowledged):
            self.orders.see_what_is_in_force()
        elif isinstance(report, SegmentFull):
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
        self.orders.see_what_is_in_force()
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
        ready = self._carriers()
        self._metrics.workers_ready(len(ready))
        self._changed.set()
        if self._accepting:
            for worker, places in zip(ready, parted(len(self._pool.listening), len(ready)), strict=True):
                if places != worker.places:
                    worker.places = places
                    worker.send(Listen(places))

    def _carriers(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.ready and worker.lineage in self._lineages]

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


async def _all_settled(lineages: list[Lineage]) -> None:
    """Raises the first `Fault`."""
    if lineages:
        await asyncio.wait([lineage.settled for lineage in lineages])
    for lineage in lineages:
        lineage.settled.result()


def parted(sockets: int, workers: int) -> Iterable[tuple[int, ...]]:
    """The places of `sockets` listening sockets, dealt out to `workers`."""
    return [tuple(range(first, sockets, workers)) for first in range(workers)] if workers else []

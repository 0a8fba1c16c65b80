"""What is told to all workers: the same, in the same order.

Laws held here:
- a change goes to every worker before anything else is done with it, and counts as in force once each has acknowledged
  it;
- whoever comes later is told the present facts, then what came meanwhile, and from then on everything with all others;
- a revision is enforced in all workers or in none.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from foundation.faults import Fault
from foundation.identity import Change, Heartbeat, PolicyPublished, SnapshotNumbers
from gateway.control import Ask, Changed, Enforce, Forget, Load, Renewed
from gateway.scrape import Told
from gateway.snapshot import SnapshotStore
from gateway.supervised import Worker
from policies.signing import VerifyingKey, public_pem

LOAD_SECONDS = 60.0
ASK_SECONDS = 2.0
TOLD_AT_ONCE = 256


class Orders:
    """Implements `gateway.follow.Followers`. `workers` are those that there are, kept by `gateway.supervisor`;
    `sequence` is the last order's number."""

    def __init__(self, workers: list[Worker], facts: SnapshotStore, sequence: int) -> None:
        self.sequence = sequence
        self.on_force: Callable[[SnapshotNumbers], None] = lambda numbers: None  # told what is in force everywhere
        self._workers = workers
        self._facts = facts
        self._question = itertools.count(1)
        self._enforced: Load | None = None
        self._candidate: Load | None = None
        self._marks: deque[tuple[int, SnapshotNumbers]] = deque()

    def apply(self, change: Change) -> None:
        """Tell `change`."""
        self.sequence += 1
        order = Changed(self.sequence, change)
        owed = 0 if isinstance(change, Heartbeat) else self.sequence
        for worker in self._workers:
            if worker.following:
                worker.owes = owed or worker.owes
                worker.send(order)
            elif worker.behind is not None:
                worker.behind.append(order)

    async def keep_up(self) -> None:
        """What was told is in our own facts by now. Wait for who has much to read still; a worker that does not read is
        killed before long."""
        self._marks.append((self.sequence, self._facts.current.numbers))
        self.see_what_is_in_force()
        for worker in list(self._workers):
            if worker.channel is not None and worker.channel.is_full:
                await worker.channel.wait_drained()

    async def load(self, published: PolicyPublished, key: VerifyingKey) -> None:
        """Load a revision, which was verified by `key`, in every worker. Raises the first `Fault`; then none holds
        it."""
        if self._candidate is not None and self._candidate.revision != published.revision:
            self._withdraw(self._candidate)
        order = self._candidate = Load(published.revision, public_pem(key), published.bundle, published.at)
        following = [worker for worker in self._workers if worker.following]  # whoever is brought up loads it too
        done = await asyncio.gather(*(self._load(worker, order) for worker in following), return_exceptions=True)
        for worker, how in zip(following, done, strict=True):
            if isinstance(how, Fault) and not worker.ended:
                self._withdraw(order)
                raise how

    def _withdraw(self, order: Load) -> None:
        self._candidate = None
        for worker in self._workers:
            worker.holds.discard(order.revision)
            worker.send(Forget(order.revision))

    def enforce(self, revision: int) -> None:
        """From now on every worker decides by the loaded `revision`."""
        if self._candidate is None or self._candidate.revision != revision:
            raise ValueError("load it first")
        self._enforced, self._candidate = self._candidate, None
        self.sequence += 1
        for worker in self._workers:
            if worker.following:
                worker.owes = self.sequence
                worker.send(Enforce(self.sequence, revision))

    def see_what_is_in_force(self) -> None:
        """Up to where every worker has acknowledged; one that carries nothing is not asked."""
        least = min((worker.acknowledged for worker in self._workers if worker.following), default=self.sequence)
        reached = None
        while self._marks and self._marks[0][0] <= least:
            reached = self._marks.popleft()[1]
        if reached is not None:
            self.on_force(reached)

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

    # --- to one worker ------------------------------------------------------------------------------------

    async def bring_up(self, worker: Worker) -> None:
        """Facts, policy, then whatever came meanwhile. Raises `Fault`."""
        await self._tell_present(worker)
        while lacking := [each for each in self._revisions() if each.revision not in worker.holds]:
            await self._load(worker, lacking[0])
        self._let_follow(worker)

    def _revisions(self) -> list[Load]:
        return [each for each in (self._enforced, self._candidate) if each is not None]

    def _let_follow(self, worker: Worker) -> None:
        """What came meanwhile, then the revision; from now on it is told everything with all others."""
        for order in worker.behind or ():
            worker.send(order)
        worker.behind, worker.following = None, True
        self.sequence += 1
        worker.owes = self.sequence
        if self._enforced is not None:
            worker.send(Enforce(self.sequence, self._enforced.revision))
        else:
            worker.send(Changed(self.sequence, Heartbeat(self._facts.heartbeat_at, self._facts.current.numbers)))

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

    async def _load(self, worker: Worker, order: Load) -> None:
        worker.send(order, large=True)
        await worker.wait_for(f"loaded {order.revision}", LOAD_SECONDS)
        worker.holds.add(order.revision)

    async def _ask(self, worker: Worker, question: str, body: bytes) -> bytes:
        number = next(self._question)
        worker.send(Ask(number, question, body))
        return await worker.wait_for(f"answered {number}", ASK_SECONDS)

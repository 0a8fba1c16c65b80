"""The audit log as the rest of the system sees it: `append` an event, and go on once it is on disk.

Appends that wait at the same time share one commit, so one fsync. All work on the file runs in one thread of its own.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from foundation.audit.records import TreeHead, encode_event
from foundation.audit.segments import MAX_COMMIT_BYTES
from foundation.audit.settings import AuditSettings
from foundation.audit.writer import LogWriter
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.ports import AuditEvent
from foundation.reasons import Reason

MAX_WAITING = 4096
_OVERHEAD = 512  # more than a record adds to its event, and a head to a commit
_Waiting = tuple[bytes, float, "asyncio.Future[int]"]


class MerkleAuditLog:
    """Implements `foundation.ports.AuditLog`. Make it once with `create`, then `open` it in one process at a time."""

    def __init__(self, writer: LogWriter, clock: Clock, thread: ThreadPoolExecutor) -> None:
        self._writer = writer
        self._clock = clock
        self._thread = thread
        self._waiting: list[_Waiting] = []
        self._committer: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def create(cls, settings: AuditSettings, clock: Clock) -> None:
        """Make an empty log, its folder and its key: part of `sallyport init`. Raises `Fault(CONFLICT)` when there is
        one."""
        LogWriter.create(settings, clock)

    @classmethod
    async def open(cls, settings: AuditSettings, clock: Clock) -> MerkleAuditLog:
        """Open the log, recording in it what a crash tore (`audit.recovered`). Raises
        `Fault(AUDIT_TAMPERED | AUDIT_FAILED | FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        thread = ThreadPoolExecutor(1, "audit")
        try:
            writer = await asyncio.get_running_loop().run_in_executor(thread, LogWriter.open, settings, clock)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        log = cls(writer, clock, thread)
        if writer.recovered:
            await log.append(AuditEvent("audit.recovered", "system", "audit", detail={"torn_bytes": writer.recovered}))
        return log

    @property
    def head(self) -> TreeHead:
        """The newest signed head: of what is on disk."""
        return self._writer.head

    async def append(self, event: AuditEvent) -> int:
        """The event's index, once it is on disk. Raises `Fault(AUDIT_FAILED)`; the caller then does nothing. A caller
        that is cancelled does not know: the event may be on record."""
        data = encode_event(event)
        if self._closed or len(self._waiting) >= MAX_WAITING:
            raise Fault(Reason.AUDIT_FAILED, "the audit log is closed" if self._closed else "too many events wait")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((data, self._clock.now(), future))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_all(), name="audit-commit")
        return await future

    async def sign_head(self) -> TreeHead:
        """Write the newest signed head beside the segments now, and give it out for keeping elsewhere. Raises
        `Fault(AUDIT_FAILED)`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.write_head)
        return self._writer.head

    async def close(self) -> None:
        """Commit what waits, write the signed head, release the log. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._committer is not None:
            await self._committer
        try:
            await self.sign_head()
        finally:
            self._writer.close()
            self._thread.shutdown(wait=False)

    async def _commit_all(self) -> None:
        while self._waiting:
            batch = self._take_batch()
            events = [(data, at) for data, at, _ in batch]
            try:
                first = await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.commit, events)
            except Exception as error:
                _fail(batch, error)
            else:
                for index, (_, _, future) in enumerate(batch, first):
                    if not future.done():
                        future.set_result(index)

    def _take_batch(self) -> list[_Waiting]:
        size = count = 0
        for data, _, _ in self._waiting:
            size += len(data) + _OVERHEAD
            if size > MAX_COMMIT_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, _, future in batch:
        if not future.done():
            known = error if isinstance(error, Fault) else None
            future.set_exception(Fault(Reason.AUDIT_FAILED, known.detail if known else "", internal=str(error)))

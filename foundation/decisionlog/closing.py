"""What happens to a full segment, beside the traffic: its digest goes into the audit log, then it is compressed, then
the disk bound is kept. None of that is urgent, and every request on a busy machine would feel a core that is taken for
a quarter of a second: so it is done in small pieces, with rests between them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from foundation.decisionlog.folders import folders, is_free
from foundation.decisionlog.segments import (
    CLOSED_SUFFIX,
    SegmentFacts,
    compress,
    disk_bytes,
    facts,
    first_id,
    mend,
    remove,
    segment_paths,
)
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.ports import AuditEvent, AuditLog

BUSY_SHARE = 0.25  # of a core's time, while there is no haste
PIECE_SECONDS = 0.002
MOST_WAITING = 4  # segments; with more, no rests
_ACTOR = "system"
_log = logging.getLogger(__name__)


class Closer(Protocol):
    """What a log does with its full segments."""

    async def mend(self, folder: Path) -> None:
        """Close what a crash left open in `folder`, which nobody else writes. Raises `OSError`."""
        ...

    def submit(self, path: Path) -> None:
        """Close the segment at `path` soon."""
        ...

    async def finish(self) -> None:
        """Return when nothing is left to close."""
        ...


class Breather:
    """A `blocks.Rest` that leaves its thread `BUSY_SHARE` of the time, in pieces of `PIECE_SECONDS` at least. One for
    each piece of work. `hurried` says when there is no time for rests."""

    def __init__(
        self,
        hurried: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hurried = hurried
        self._monotonic = monotonic
        self._sleep = sleep
        self._since = monotonic()

    def __call__(self) -> None:
        worked = self._monotonic() - self._since
        if worked >= PIECE_SECONDS and not self._hurried():
            self._sleep(worked * (1 / BUSY_SHARE - 1))
            self._since = self._monotonic()


class SegmentCloser:
    """Closes segments one after another, in a task of its own while there are any; keeps the bound over all folders.
    `on_drop` is told how many decisions went with a dropped segment."""

    def __init__(
        self, settings: DecisionLogSettings, audit: AuditLog, on_drop: Callable[[int], None] = lambda count: None
    ) -> None:
        self._settings = settings
        self._audit = audit
        self._on_drop = on_drop
        self._finishing = False
        self._waiting: list[Path] = []
        self._turn = asyncio.Lock()  # one at a time touches closed segments and drafts
        self._task: asyncio.Task[None] | None = None

    async def mend(self, folder: Path) -> None:
        """See `Closer`."""
        async with self._turn:
            left = await asyncio.to_thread(mend, folder)
        for path in left:
            self.submit(path)

    async def mend_workers(self) -> None:
        """Close what workers of the past left open, where none writes now. Raises `OSError`."""
        _own, *others = await asyncio.to_thread(folders, self._settings.directory)
        for folder in others:
            if await asyncio.to_thread(is_free, folder):
                await self.mend(folder)

    def submit(self, path: Path) -> None:
        """Close the segment at `path` soon."""
        if path not in self._waiting:
            self._waiting.append(path)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="decision-segments")

    async def finish(self) -> None:
        """Return when nothing is left to close."""
        self._finishing = True
        if self._task is not None:
            await self._task

    def _is_hurried(self) -> bool:
        """Somebody waits, or more segments come than are closed."""
        return self._finishing or len(self._waiting) > MOST_WAITING

    async def _run(self) -> None:
        while self._waiting:
            try:
                async with self._turn:
                    await self._close(self._waiting.pop(0))
                    await self._keep_bound()
            except (OSError, EOFError, Fault) as error:
                # It stays as it is and is taken up again at the next start.
                _log.warning("a decision segment could not be closed", extra={"cause": str(error)})

    async def _close(self, path: Path) -> None:
        found = await asyncio.to_thread(facts, path, Breather(self._is_hurried))
        await self._audit.append(AuditEvent("decisions.segment_closed", _ACTOR, found.first, detail=asdict(found)))
        await asyncio.to_thread(compress, path, Breather(self._is_hurried))

    async def _keep_bound(self) -> None:
        for path in await asyncio.to_thread(_beyond, self._settings.directory, self._settings.total_bytes):
            found = await asyncio.to_thread(self._facts_of_doomed, path)
            await self._audit.append(AuditEvent("decisions.segment_dropped", _ACTOR, found.first, detail=asdict(found)))
            remove(path)
            self._on_drop(found.count)

    def _facts_of_doomed(self, path: Path) -> SegmentFacts:
        """What is known of a segment that goes. A damaged one goes too, or the bound would be none: what was in it,
        nobody knows."""
        try:
            return facts(path, Breather(self._is_hurried))
        except EOFError:
            return SegmentFacts(first_id(path), "", 0, 0, "")


def _beyond(directory: Path, total_bytes: int) -> list[Path]:
    """The oldest closed segments that must go so that all together take `total_bytes` at most."""
    paths = sorted((path for folder in folders(directory) for path in segment_paths(folder)), key=first_id)
    sizes = [disk_bytes(path) for path in paths]
    excess = sum(sizes) - total_bytes
    doomed = []
    for path, size in zip(paths, sizes, strict=True):
        if excess <= 0:
            break
        if path.name.endswith(CLOSED_SUFFIX):
            doomed.append(path)
            excess -= size
    return doomed

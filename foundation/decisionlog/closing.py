"""What happens to a full segment, beside the traffic: its digest goes into the audit log, then it is compressed, then
the disk bound is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from foundation.decisionlog.segments import CLOSED_SUFFIX, compress, disk_bytes, facts, remove, segment_paths
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.ports import AuditEvent, AuditLog

_ACTOR = "system"
_log = logging.getLogger(__name__)


class SegmentCloser:
    """Closes segments one after another, in a task of its own while there are any."""

    def __init__(self, settings: DecisionLogSettings, audit: AuditLog, on_drop: Callable[[int], None]) -> None:
        self._settings = settings
        self._audit = audit
        self._on_drop = on_drop
        self._waiting: list[Path] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, path: Path) -> None:
        """Close the segment at `path` soon."""
        self._waiting.append(path)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="decision-segments")

    async def finish(self) -> None:
        """Return when nothing is left to close."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._waiting:
            try:
                await self._close(self._waiting.pop(0))
                await self._keep_bound()
            except (OSError, EOFError, Fault) as error:
                # It stays as it is and is taken up again at the next start.
                _log.warning("a decision segment could not be closed", extra={"cause": str(error)})

    async def _close(self, path: Path) -> None:
        found = await asyncio.to_thread(facts, path)
        await self._audit.append(AuditEvent("decisions.segment_closed", _ACTOR, found.first, detail=asdict(found)))
        await asyncio.to_thread(compress, path)

    async def _keep_bound(self) -> None:
        for path in await asyncio.to_thread(_beyond, self._settings.directory, self._settings.total_bytes):
            found = await asyncio.to_thread(facts, path)
            await self._audit.append(AuditEvent("decisions.segment_dropped", _ACTOR, found.first, detail=asdict(found)))
            remove(path)
            self._on_drop(found.count)


def _beyond(directory: Path, total_bytes: int) -> list[Path]:
    """The oldest closed segments that must go so that all together take `total_bytes` at most."""
    paths = segment_paths(directory)
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

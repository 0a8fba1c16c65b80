"""The decision log: every decision, handed to the kernel before its answer goes out.

Laws held here:
- one write per turn of the event loop, without fsync: a crash of the machine may lose the newest, a crash of the
  process none that was handed over;
- a decision of a critical route that was not kept is a fault to whoever is about to act on it; others are counted;
- of a request target the query is kept as a keyed hash: credentials travel there;
- disk use is bounded: the oldest closed segments are dropped, counted, and named in the audit log;
- a closed segment's SHA-256 goes into the audit log before the segment is compressed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from foundation.clock import Clock
from foundation.decisionlog import find as finder
from foundation.decisionlog.closing import Closer
from foundation.decisionlog.folders import take_lock
from foundation.decisionlog.ids import DecisionIds
from foundation.decisionlog.line import encode, like, with_cut, with_facts, with_input
from foundation.decisionlog.masking import Mask
from foundation.decisionlog.segments import ActiveSegment, newest_id
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.ports import DecisionEntry
from foundation.reasons import Reason

MAX_BUFFERED = 4096
MAX_SHARED_INPUTS = 4096
_log = logging.getLogger(__name__)


class DecisionLog:
    """Implements `foundation.ports.DecisionRecorder`. `ids` makes the decisions' IDs; `dropped` counts decisions that
    were not kept. Belongs to one event loop and one process: each writes a folder of its own."""

    def __init__(
        self, settings: DecisionLogSettings, clock: Clock, closer: Closer, on_drop: Callable[[int], None], mask: Mask
    ) -> None:
        self.ids = DecisionIds(clock)
        self.dropped = 0
        self._settings = settings
        self._on_drop = on_drop
        self._mask = mask
        self._closer = closer
        self._loop = asyncio.get_running_loop()
        self._entries: list[DecisionEntry] = []
        self._lines: list[bytes] = []
        self._inputs: dict[bytes, str] = {}  # input key → the decision of this segment that holds the input
        self._segment: ActiveSegment | None = None
        self._scheduled = False
        self._failing = False
        self._closed = False
        self._lock = -1

    @classmethod
    async def open(
        cls,
        settings: DecisionLogSettings,
        clock: Clock,
        closer: Closer,
        on_drop: Callable[[int], None] = lambda count: None,
        mask: Mask | None = None,
    ) -> DecisionLog:
        """Open the log in its folder; `closer` closes what a crash left open there, and every full segment. `on_drop`
        is told how many decisions were not kept; `mask` hides what follows the `?` of a target. Raises
        `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | CONFLICT)`."""
        make_private_folder(settings.directory)
        log = cls(settings, clock, closer, on_drop, mask or Mask.forgetful())
        try:
            log._lock = take_lock(settings.directory)
            await closer.mend(settings.directory)
            log.ids = DecisionIds(clock, after=await asyncio.to_thread(newest_id, settings.directory))
        except OSError as error:
            await log.close()
            raise Fault(Reason.FILE_UNREADABLE, error.strerror or str(error), field=str(settings.directory)) from error
        return log

    def record(self, entry: DecisionEntry) -> None:
        """Take one decision; see the port."""
        if self._closed:
            entry.lost = True
            self._count(1)
            return
        if len(self._lines) >= MAX_BUFFERED:
            self._hand_over()
        self._lines.append(self._line(entry))
        self._entries.append(entry)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_of_turn)

    def flush(self, entry: DecisionEntry) -> None:
        """Hand over what is still here. Raises `Fault(DECISION_UNRECORDED)` when `entry` is critical and was lost."""
        if self._lines:
            self._hand_over()
        if entry.lost and entry.critical:
            raise Fault(Reason.DECISION_UNRECORDED)

    async def find(self, decision_id: str) -> finder.Record:
        """The decision of this ID, its input in place. Raises `Fault(NOT_FOUND | FILE_UNREADABLE)`."""
        self._hand_over()
        return await asyncio.to_thread(finder.find, self._settings.directory, decision_id)

    async def find_cut(self, permit_id: str) -> finder.Record | None:
        """The decision that ended the stream which ran by this one. Raises `Fault(FILE_UNREADABLE)`."""
        self._hand_over()
        return await asyncio.to_thread(finder.find_cut, self._settings.directory, permit_id)

    async def recent(self, limit: int) -> list[finder.Record]:
        """The newest decisions, the newest first. Raises `Fault(FILE_UNREADABLE)`."""
        self._hand_over()
        return await asyncio.to_thread(finder.recent, self._settings.directory, limit)

    async def close(self) -> None:
        """Hand over what is here and close the segment. What is recorded later is lost."""
        self._hand_over()
        self._rotate()
        self._closed = True
        await self._closer.finish()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _line(self, entry: DecisionEntry) -> bytes:
        if "?" in entry.target:
            entry.target = self._mask.target(entry.target)
        parts = self._input_part(entry)
        if entry.facts:
            parts += with_facts(entry.facts)
        if entry.cut:
            parts += with_cut(entry.cut)
        return encode(entry, parts)

    def _input_part(self, entry: DecisionEntry) -> bytes:
        if entry.input is None:
            return b""
        key = entry.input_key
        known = self._inputs.get(key) if key else None
        if known is not None:
            return like(known)
        if key:
            if len(self._inputs) >= MAX_SHARED_INPUTS:
                del self._inputs[next(iter(self._inputs))]
            self._inputs[key] = entry.id
        return with_input(entry.input)

    def _end_of_turn(self) -> None:
        self._scheduled = False
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._lines:
            return
        lines, entries, self._lines, self._entries = self._lines, self._entries, [], []
        try:
            if self._segment is None:
                self._segment = ActiveSegment(self._settings.directory, entries[0].id)
            self._segment.append(b"".join(lines))
        except OSError as error:
            self._lose(entries, error)
            return
        self._failing = False
        if self._segment.size >= self._settings.segment_bytes:
            self._rotate()

    def _rotate(self) -> None:
        self._inputs.clear()
        if self._segment is not None:
            self._segment.close()
            self._closer.submit(self._segment.path)
            self._segment = None

    def _lose(self, entries: list[DecisionEntry], error: OSError) -> None:
        self._inputs.clear()  # an input that later entries would refer to may be among them
        for entry in entries:
            entry.lost = True
        self._count(len(entries))
        if not self._failing:
            _log.error("decisions cannot be recorded", extra={"cause": error.strerror})
        self._failing = True

    def _count(self, dropped: int) -> None:
        self.dropped += dropped
        self._on_drop(dropped)

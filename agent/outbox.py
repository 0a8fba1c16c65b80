"""What this node notes while nobody can be told, on disk until the authority has it: in order, and exactly once.

Laws held here:
- a record is with the kernel when `add` returns, so that a kill loses none; it is on disk within `SYNC_SECONDS`, and
  before it is delivered, so that a number that was delivered is never given to another record;
- a batch is repeated until it is answered. What the authority answers is held against the hash over the own records:
  where that is another history (this disk was put back to an earlier state), the outbox begins another incarnation;
- the disk that it takes is bounded. What is dropped is counted by kind, and delivered as a `gap` in its place: the
  newest is dropped, so that what came first stays whole; health before decisions, decisions before audit records. An
  end that was no orderly one is a `gap` too, for what was counted then is lost;
- deliveries are jittered, and so are their repetitions, at growing pauses.

Files: `outbox.json` says which incarnation is in use, how far it was delivered and whether it was closed in order; the
records lie in a folder of the incarnation's name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.record_files import RecordFiles
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import make_private_folder, read_secret, write_secret
from foundation.reasons import Reason
from foundation.wire.records import (
    CHAIN_START,
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_RECORD_BYTES,
    NodeRecord,
    Receipt,
    RecordBatch,
    RecordKind,
    chained,
)

STATE = "outbox.json"
SYNC_SECONDS = 1.0
_RESERVE = 64 * 1024  # bytes, for what tells of gaps
_SHARES = {RecordKind.HEALTH: 0.5, RecordKind.DECISION: 0.75, RecordKind.AUDIT: 1.0}
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
_BATCH_BYTES = MAX_BATCH_BYTES - 2 * MAX_BATCH_RECORDS - 1024
_MAX_STATE_BYTES = 1024
_INCARNATION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LOG = logging.getLogger(__name__)

Deliver = Callable[[RecordBatch], Receipt]
"""Hands a batch to the authority. Blocks. Raises `Fault`."""


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """Section `[agent.outbox]`. `max_bytes` on disk; `every` is how long records gather, in seconds, while the
    authority is there."""

    max_bytes: int = 16 << 20
    every: float = 30.0

    @classmethod
    def parse(cls, fields: Fields) -> OutboxSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(fields.size("max_bytes", "16MiB"), fields.duration("every", "30s"))
        if not 1 << 20 <= settings.max_bytes <= 1 << 40:
            raise fields.fault("max_bytes", "expected from 1MiB to 1024GiB")
        if not 1.0 <= settings.every <= 3600.0:
            raise fields.fault("every", "expected from 1s to 1h")
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class _State:
    """What `outbox.json` says. `chain` is over the records up to the number `taken`; `open` while a process has it."""

    incarnation: str
    taken: int = 0
    chain: bytes = CHAIN_START
    open: bool = True

    @classmethod
    def anew(cls) -> _State:
        return cls(secrets.token_hex(16))

    @classmethod
    def read(cls, path: Path) -> _State | None:
        if not path.exists():
            return None
        raw = read_secret(path, max_bytes=_MAX_STATE_BYTES)
        fields = Fields.from_json(raw, str(path), Reason.FILE_UNREADABLE, max_bytes=_MAX_STATE_BYTES)
        incarnation = fields.text("incarnation", max_length=32)
        if not _INCARNATION.fullmatch(incarnation):
            raise fields.fault("incarnation", "expected 32 hex digits")
        chain = fields.base64("chain", max_bytes=len(CHAIN_START))
        state = cls(incarnation, fields.integer("taken"), chain, fields.flag("open"))
        fields.finish()
        return state

    def write(self, path: Path) -> None:
        chain = base64.b64encode(self.chain).decode()
        document = {"incarnation": self.incarnation, "taken": self.taken, "chain": chain, "open": self.open}
        write_secret(path, json.dumps(document).encode())


class Outbox:
    """Make one with `open`, keep `run` running, `close` it. `add` is for the event loop's thread."""

    def __init__(
        self, folder: Path, clock: Clock, settings: OutboxSettings, draw: Callable[[float, float], float]
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._settings = settings
        self._draw = draw
        self._dropped: Counter[str] = Counter()
        self._dropped_since = 0.0
        self._syncing = asyncio.Lock()
        self._state, self._files = self._take_up()

    @classmethod
    def open(
        cls,
        folder: Path,
        clock: Clock,
        settings: OutboxSettings | None = None,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> Outbox:
        """Take up what is there. Blocks. Raises `OSError`, and `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        make_private_folder(folder)
        return cls(folder, clock, settings or OutboxSettings(), draw)

    @property
    def waiting(self) -> int:
        """How many records were not delivered yet."""
        return self._files.last - self._state.taken

    @property
    def used(self) -> int:
        """Bytes on disk."""
        return self._files.size

    def add(self, kind: RecordKind, body: Mapping[str, Any]) -> bool:
        """Note this, now. False when it had to be dropped. Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` for
        what is no record."""
        line = NodeRecord(self._clock.now(), kind, body).encode()
        if self._has_room(kind) and self._tell_gap() and self._append(line):
            return True
        if not self._dropped:
            self._dropped_since = self._clock.now()
            _LOG.warning("records are dropped: the outbox is full")
        self._dropped[kind.value] += 1
        return False

    async def run(self, deliver: Deliver) -> None:
        """Bring records to disk and to the authority, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_syncing())
            group.create_task(self._keep_delivering(deliver))

    async def deliver_all(self, deliver: Deliver) -> None:
        """Deliver everything that is here now, batch after batch. Raises `Fault`; what was taken until then is."""
        until = self._files.last
        while self._state.taken < until and await self._deliver_some(deliver):
            pass

    def close(self) -> None:
        """The end, in order. Raises `OSError`."""
        self._tell_gap()
        self._files.close()
        replace(self._state, open=bool(self._dropped)).write(self._folder / STATE)

    # --- adding -------------------------------------------------------------------------------------------

    def _has_room(self, kind: RecordKind) -> bool:
        share = self._settings.max_bytes * _SHARES.get(kind, 1.0)
        return self._files.size + MAX_RECORD_BYTES <= share

    def _tell_gap(self) -> bool:
        """Note what was dropped, once none of its kinds would be dropped now. False when that cannot be written."""
        if not self._dropped or not all(self._has_room(RecordKind(kind)) for kind in self._dropped):
            return True
        body = {"dropped": dict(self._dropped), "since": self._dropped_since}
        if not self._append(NodeRecord(self._clock.now(), RecordKind.GAP, body).encode()):
            return False
        self._dropped.clear()
        return True

    def _append(self, line: bytes) -> bool:
        try:
            self._files.append(line)
        except OSError as error:
            _LOG.error("the outbox cannot be written: %s", error)
            return False
        return True

    # --- delivering ----------------------------------------------------------------------------------------

    async def _keep_syncing(self) -> None:
        while True:
            await self._clock.sleep(SYNC_SECONDS)
            try:
                await self._sync()
            except OSError as error:
                _LOG.error("the outbox cannot be brought to disk: %s", error)

    async def _keep_delivering(self, deliver: Deliver) -> None:
        pause = 0.0
        while True:
            await self._clock.sleep(self._draw(0.5, 1.0) * (pause or self._settings.every))
            try:
                await self.deliver_all(deliver)
            except (Fault, OSError) as error:
                pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
                if pause == _FIRST_PAUSE:
                    _LOG.warning("records wait: %s", error)
            else:
                pause = 0.0
                self._tell_gap()

    async def _deliver_some(self, deliver: Deliver) -> bool:
        """One batch. False when there is none."""
        await self._sync()
        state = self._state
        lines = await asyncio.to_thread(self._files.read, state.taken, MAX_BATCH_RECORDS, _BATCH_BYTES)
        if not lines:
            return False
        batch = RecordBatch(state.incarnation, state.taken + 1, state.chain, lines)
        try:
            receipt = await asyncio.to_thread(deliver, batch)
        except Fault as fault:
            if fault.reason is not Reason.CONFLICT:
                raise
            await self._begin_anew()
            return True
        await self._delivered(batch, receipt)
        return True

    async def _delivered(self, batch: RecordBatch, receipt: Receipt) -> None:
        """The authority has everything up to `receipt.taken`, if its history is ours."""
        count = receipt.taken - self._state.taken
        if count < 1:
            raise Fault(Reason.MESSAGE_MALFORMED, "the receipt is of nothing that was sent", field="receipt.taken")
        lines = batch.lines[:count]
        if count > len(batch.lines):  # more than was sent: a receipt was lost, and the state with it
            lines = await asyncio.to_thread(self._files.read, self._state.taken, count, self._all_bytes)
        if len(lines) != count or chained(self._state.chain, lines) != receipt.chain:
            await self._begin_anew()
            return
        self._state = replace(self._state, taken=receipt.taken, chain=receipt.chain)
        await asyncio.to_thread(self._state.write, self._folder / STATE)
        self._files.drop(receipt.taken)

    async def _sync(self) -> None:
        async with self._syncing:
            await asyncio.to_thread(self._files.sync)

    @property
    def _all_bytes(self) -> int:
        return self._settings.max_bytes + 2 * _RESERVE

    # --- incarnations -----------------------------------------------------------------------------------------

    def _take_up(self) -> tuple[_State, RecordFiles]:
        found, unreadable = self._read_state()
        state = found or _State.anew()
        files = RecordFiles(self._folder / state.incarnation, state.taken)
        if found is None or not found.open:
            state = replace(state, open=True)
            state.write(self._folder / STATE)
        elif files.size <= self._settings.max_bytes:
            self._note_gap(files, {"unclean": True, "cut_bytes": files.cut})
        if unreadable:
            self._note_gap(files, {"state": "unreadable"})
        self._remove_others(state)
        return state, files

    def _read_state(self) -> tuple[_State | None, bool]:
        """What the state's file says, and whether it cannot be read: then the records it was of are lost, and that is
        told. A node must not stay down for it."""
        try:
            return _State.read(self._folder / STATE), False
        except Fault as fault:
            _LOG.error("the outbox begins anew, for its state cannot be read: %s", fault)
            return None, True

    def _note_gap(self, files: RecordFiles, body: Mapping[str, Any]) -> None:
        try:
            files.append(NodeRecord(self._clock.now(), RecordKind.GAP, body).encode())
        except OSError as error:
            _LOG.error("the outbox cannot be written: %s", error)
            self._dropped[RecordKind.GAP.value] += 1

    async def _begin_anew(self) -> None:
        """Another incarnation, with what was not delivered yet. It is rare, and nothing may be added meanwhile: it
        blocks."""
        async with self._syncing:
            self._copy_to_another()

    def _copy_to_another(self) -> None:
        _LOG.warning("the authority has another history of this outbox: it begins anew")
        before, state = self._files, _State.anew()
        folder = self._folder / state.incarnation
        try:
            files = RecordFiles(folder, 0)
            body = {"history": "the authority has another", "incarnation": self._state.incarnation}
            files.append(NodeRecord(self._clock.now(), RecordKind.GAP, body).encode())
            before.sync()
            for line in before.read(self._state.taken, 2**62, self._all_bytes):
                files.append(line)
            files.sync()
            state.write(self._folder / STATE)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._state, self._files = state, files
        before.close()
        self._remove_others(state)

    def _remove_others(self, state: _State) -> None:
        for path in self._folder.iterdir():
            if path.is_dir() and _INCARNATION.fullmatch(path.name) and path.name != state.incarnation:
                shutil.rmtree(path)

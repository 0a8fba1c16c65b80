"""What a gateway knows, on disk: it comes up again while its authority cannot be reached.

The file is the feed as it was heard, line by line (`foundation.wire.changes`), and is read as the feed is read. Its
last heartbeat says how old the facts are: what that age forbids is `policies.staleness`'s to say, and a revision
is verified and held against the floor as if the authority had just sent it.

Laws held here:
- a change is with the kernel before it is in force, so that a gateway that is killed forgets no revocation; on the
  disk it is within `SYNC_SECONDS`;
- a line that was torn by a crash is the last one, and left out. Any other damage makes the whole file worthless: facts
  with holes are worse than none, for the hole may be a revocation;
- a file that cannot be written is removed, and begun anew from what is known.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.files import read_secret, sync_folder
from foundation.identity import Change, PolicyPublished
from foundation.wire.changes import encode_change, parse_change

SYNC_SECONDS = 2.0
SLACK_BYTES = 1 << 20
MAX_BYTES = 512 << 20
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
_LOG = logging.getLogger(__name__)


class KeptFacts:
    """The file at `path`, mode 0600. `present` gives the changes that would make the present state, without policy; it
    is called on the event loop, and what it gives is read elsewhere. Keep `run` running."""

    def __init__(self, path: Path, present: Callable[[], Iterable[Change]], clock: Clock) -> None:
        self._path = path
        self._present = present
        self._clock = clock
        self._policy: PolicyPublished | None = None
        self._file = -1
        self._size = self._compacted = 0
        self._synced = 0
        self._meanwhile: list[bytes] | None = None

    def recall(self) -> tuple[Change, ...]:
        """What was kept, in order, with the newest revision alone; nothing when nothing was. From now on changes can be
        kept. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | MESSAGE_MALFORMED)` when what is there is of no use; it
        is removed then."""
        try:
            found = self._read() if self._path.exists() else ()
        except Fault:
            self._begin_anew()
            raise
        self._file = os.open(self._path, _APPEND, 0o600)
        return found

    def keep(self, change: Change) -> None:
        """`change` is to be in force."""
        if isinstance(change, PolicyPublished):
            if change == self._policy:
                return  # it was recalled
            self._policy = change
        line = encode_change(change)
        if self._meanwhile is not None:
            self._meanwhile.append(line)
        if self._file < 0:
            return
        try:
            self._size += _write_all(self._file, line)
        except OSError as error:
            _LOG.error("what this gateway knows cannot be kept: %s", error)
            self._drop()

    async def run(self) -> None:
        """Bring to disk what was kept, and rewrite the file when most of it is past, until cancelled."""
        try:
            while True:
                await self._clock.sleep(SYNC_SECONDS)
                try:
                    await self._tend()
                except OSError as error:
                    _LOG.error("what this gateway knows cannot be kept: %s", error)
                    self._drop()
        finally:
            self.close()

    def close(self) -> None:
        """Nothing is kept any more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    async def _tend(self) -> None:
        if self._file < 0 or self._size > 2 * self._compacted + SLACK_BYTES:
            await self._compact()
        elif self._size != self._synced:
            self._synced = self._size
            await asyncio.to_thread(os.fdatasync, self._file)

    async def _compact(self) -> None:
        """Write the present state beside the file, then put it in its place. Changes that come meanwhile go to both."""
        present, policy, self._meanwhile = self._present(), self._policy, []
        draft = self._path.with_name(f".{self._path.name}.draft")
        try:
            file, size = await asyncio.to_thread(_write, draft, present, policy)
            try:
                size += _write_all(file, b"".join(self._meanwhile))
                draft.replace(self._path)
            except OSError:
                os.close(file)
                raise
        finally:
            self._meanwhile = None
        self.close()
        self._file, self._size, self._compacted, self._synced = file, size, size, 0
        await asyncio.to_thread(sync_folder, self._path.parent)

    def _read(self) -> tuple[Change, ...]:
        found, size = _parse(read_secret(self._path, max_bytes=MAX_BYTES))
        os.truncate(self._path, size)
        self._size = self._compacted = self._synced = size
        self._policy = next((each for each in reversed(found) if isinstance(each, PolicyPublished)), None)
        facts = tuple(each for each in found if not isinstance(each, PolicyPublished))
        return facts if self._policy is None else (self._policy, *facts)

    def _begin_anew(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file = os.open(self._path, _APPEND, 0o600)
        self._size = self._compacted = self._synced = 0

    def _drop(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)


def read_facts(path: Path) -> list[Change]:
    """What some gateway kept at `path`. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | MESSAGE_MALFORMED)`."""
    return _parse(read_secret(path, max_bytes=MAX_BYTES))[0]


def _parse(raw: bytes) -> tuple[list[Change], int]:
    """The changes in `raw`, and how many bytes they take: what follows the last newline was torn."""
    whole = raw[: raw.rfind(b"\n") + 1]
    return [parse_change(line) for line in whole.split(b"\n")[:-1]], len(whole)


def _write_all(file: int, data: bytes) -> int:
    if os.write(file, data) != len(data):
        raise OSError("the disk is full")
    return len(data)


def _write(path: Path, present: Iterable[Change], policy: PolicyPublished | None) -> tuple[int, int]:
    """A new file with the whole state, open for more, and its size."""
    file, size = os.open(path, _ANEW, 0o600), 0
    with os.fdopen(os.dup(file), "wb") as buffered:
        for change in (*([policy] if policy else []), *present):
            size += buffered.write(encode_change(change))
        buffered.flush()
        os.fsync(file)
    return file, size

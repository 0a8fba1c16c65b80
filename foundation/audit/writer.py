"""The one writer of an audit log: synchronous, for a thread of its own (`log.MerkleAuditLog` runs it).

Laws held here:
- a commit returns only after fsync, and a commit that failed left nothing behind;
- after a failed fsync nothing more is written: what the kernel then holds is not known;
- a second writer of the same log is refused by a lock on its folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foundation.audit.key import make_audit_key, read_audit_key
from foundation.audit.merkle import Range, leaf_hash
from foundation.audit.records import TreeHead, encode_record
from foundation.audit.segments import (
    HEAD_FILE,
    SegmentReader,
    encode_header,
    read_head_file,
    segment_path,
    segment_paths,
)
from foundation.audit.settings import AuditSettings
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.files import SECRET_MODE, make_private_folder, write_atomic, write_secret
from foundation.reasons import Reason


class LogWriter:
    """Appends to an audit log. Make one with `open`; `recovered` is how many torn bytes that cut off."""

    def __init__(self, settings: AuditSettings, clock: Clock, key: Ed25519PrivateKey) -> None:
        self.recovered = 0
        self.head = TreeHead(0, "", b"")
        self._settings = settings
        self._clock = clock
        self._key = key
        self._tree = Range()
        self._end = 0
        self._file = -1
        self._lock = -1
        self._broken = False
        self._head_written_at = clock.monotonic()

    @classmethod
    def create(cls, settings: AuditSettings, clock: Clock) -> None:
        """Make the folder, the key if it is missing, and an empty log with a signed head. Raises `Fault(CONFLICT)` when
        there is a log already, and `Fault(AUDIT_TAMPERED)` when there was one."""
        make_private_folder(settings.directory)
        key = read_audit_key(settings.key_path) if settings.key_path.exists() else make_audit_key(settings.key_path)
        if segment_path(settings.directory, 0).exists():
            raise Fault(Reason.CONFLICT, "there is an audit log already", field=str(settings.directory))
        if (settings.directory / HEAD_FILE).exists() and read_head_file(settings.directory, key.public_key()).size:
            raise Fault(Reason.AUDIT_TAMPERED, "the log's segments are gone", field=str(settings.directory))
        head = TreeHead.sign(Range(), clock.now(), key)
        write_atomic(settings.directory / HEAD_FILE, head.encode() + b"\n", mode=SECRET_MODE)
        write_secret(segment_path(settings.directory, 0), encode_header(head, ()))

    @classmethod
    def open(cls, settings: AuditSettings, clock: Clock) -> LogWriter:
        """Open the log that `create` made, checking its last segment and cutting off what a crash tore. Raises
        `Fault(AUDIT_TAMPERED | AUDIT_FAILED | FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
        make_private_folder(settings.directory)
        writer = cls(settings, clock, read_audit_key(settings.key_path))
        try:
            writer._take_lock()
            writer._resume()
        except OSError as error:
            writer.close()
            raise Fault(Reason.AUDIT_FAILED, error.strerror or "", field=str(settings.directory)) from error
        except BaseException:
            writer.close()
            raise
        return writer

    def commit(self, events: Sequence[tuple[bytes, float]]) -> int:
        """The index of the first of `events` (from `encode_event`, each with its time), once all are on disk. Raises
        `Fault(AUDIT_FAILED)`; then none is."""
        if self._broken:
            raise Fault(Reason.AUDIT_FAILED, "an earlier write failed; open the log again")
        try:
            if self._end >= self._settings.segment_bytes:
                self._begin_segment()
            return self._append(events)
        except OSError as error:
            raise Fault(Reason.AUDIT_FAILED, error.strerror or "", internal=str(error)) from error

    def write_head(self) -> None:
        """Write the newest signed head beside the segments. Raises `Fault(AUDIT_FAILED)`."""
        try:
            self._write_head()
        except OSError as error:
            raise Fault(Reason.AUDIT_FAILED, error.strerror or "", internal=str(error)) from error

    def close(self) -> None:
        """Release file and lock. Writing the head first is the caller's."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1
        self._broken = True

    def _append(self, events: Sequence[tuple[bytes, float]]) -> int:
        first = self._tree.size
        lines = [encode_record(event, first + i, now) for i, (event, now) in enumerate(events)]
        tree = self._tree.extended(map(leaf_hash, lines))
        head = TreeHead.sign(tree, self._clock.now(), self._key)
        self._write(b"\n".join((*lines, head.encode(), b"")))
        self._tree, self.head = tree, head
        if self._clock.monotonic() - self._head_written_at >= self._settings.head_every:
            with suppress(OSError):  # the commit stands without it
                self._write_head()
        return first

    def _write(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            self._undo()
            raise
        try:
            os.fsync(self._file)
        except OSError:
            self._broken = True
            raise
        self._end += len(data)

    def _undo(self) -> None:
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            self._broken = True

    def _begin_segment(self) -> None:
        self._write_head()
        path = segment_path(self._settings.directory, self._tree.size)
        header = encode_header(self.head, self._tree.peaks)
        write_secret(path, header)
        os.close(self._file)
        self._file = -1
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        self._end = len(header)

    def _write_head(self) -> None:
        write_atomic(self._settings.directory / HEAD_FILE, self.head.encode() + b"\n", mode=SECRET_MODE)
        self._head_written_at = self._clock.monotonic()

    def _take_lock(self) -> None:
        self._lock = os.open(self._settings.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, SECRET_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fault(Reason.IN_USE, field=str(self._settings.directory)) from None

    def _resume(self) -> None:
        reader = SegmentReader(segment_paths(self._settings.directory)[-1], self._key.public_key())
        witness = read_head_file(self._settings.directory, self._key.public_key())
        seen = witness == reader.head
        for commit in reader.commits():
            seen = seen or witness == commit.head
        if not seen:
            raise Fault(Reason.AUDIT_TAMPERED, f"the log does not hold the {witness.size} records that were signed")
        self._tree, self.head, self._end, self.recovered = reader.tree, reader.head, reader.end, reader.torn
        self._file = os.open(reader.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        if reader.torn:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)

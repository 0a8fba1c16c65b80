"""Files that must survive a crash whole, and files that nobody else may read.

Laws held here:
- a file is replaced, never overwritten: a reader sees the old content or the new, never a part;
- when a call returns, the content and its name are on disk (fsync of file and folder);
- a secret is never readable by group or others, not even while it is being written.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from foundation.faults import Fault
from foundation.reasons import Reason

SECRET_MODE = 0o600
FOLDER_MODE = 0o700
MAX_SECRET_BYTES = 1 << 20
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` in one step. Raises `OSError`; then `path` is as it was."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(draft, data, mode)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_secret(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write `data` so that only this user can read it, mode 0600. Without `replace` an existing `path` raises
    `FileExistsError` and stays. Raises `OSError`."""
    if replace:
        write_atomic(path, data, mode=SECRET_MODE)
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(draft, data, SECRET_MODE)
        os.link(draft, path, follow_symlinks=False)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a file that somebody names, `max_bytes` at most. Raises `Fault(FILE_UNREADABLE)`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    if len(content) > max_bytes:
        raise Fault(Reason.FILE_UNREADABLE, f"larger than {max_bytes} bytes", field=str(path))
    return content


def read_secret(path: Path, *, max_bytes: int = MAX_SECRET_BYTES) -> bytes:
    """The content of a secret's file. Raises `Fault(FILE_MODE_UNSAFE)` when group or others may touch it, and
    `Fault(FILE_UNREADABLE)` when it is missing, no plain file, or larger than `max_bytes`."""
    try:
        # A FIFO would block an opener that waits for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            check_secret_mode(path, os.fstat(file.fileno()))
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    if len(data) > max_bytes:
        raise Fault(Reason.FILE_UNREADABLE, f"larger than {max_bytes} bytes", field=str(path))
    return data


def open_key(path: Path, size: int) -> bytes:
    """The random key of `size` bytes at `path`, which is made when it is missing; of several who make it at once, all
    get the same. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
    try:
        write_secret(path, secrets.token_bytes(size), replace=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be made", field=str(path)) from error
    key = read_secret(path)
    if len(key) != size:
        raise Fault(Reason.FILE_UNREADABLE, f"expected {size} bytes", field=str(path))
    return key


def check_secret_mode(path: Path, status: os.stat_result) -> None:
    """Raises `Fault` unless `status` is of a plain file that only its owner may touch."""
    if not stat.S_ISREG(status.st_mode):
        raise Fault(Reason.FILE_UNREADABLE, "not a plain file", field=str(path))
    if status.st_mode & _OTHERS:
        raise Fault(Reason.FILE_MODE_UNSAFE, f"mode is {stat.S_IMODE(status.st_mode):04o}", field=str(path))


def make_private_folder(path: Path) -> None:
    """Make `path` with mode 0700 where it is missing. Raises `Fault(FILE_MODE_UNSAFE)` when group or others may write
    to it, and `Fault(FILE_UNREADABLE)` when it cannot be made."""
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be made", field=str(path)) from error
    if mode & _OTHERS_WRITE:
        raise Fault(Reason.FILE_MODE_UNSAFE, f"the folder's mode is {stat.S_IMODE(mode):04o}", field=str(path))


def sync_folder(path: Path) -> None:
    """Put the names in a folder on disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

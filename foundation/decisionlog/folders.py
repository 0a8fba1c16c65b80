"""The log's folders: its own, which the main process writes, and below it one for each worker. Whoever writes a folder
holds its lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from foundation.files import SECRET_MODE

_WORKER = "worker-"


def worker_folder(directory: Path, number: int) -> Path:
    """Where the worker of this number writes."""
    return directory / f"{_WORKER}{number}"


def folders(directory: Path) -> list[Path]:
    """Every folder that there is, the log's own first. Raises `OSError`."""
    return [directory, *sorted(path for path in directory.iterdir() if path.name.startswith(_WORKER))]


def take_lock(folder: Path) -> int:
    """The descriptor that holds the lock until it is closed. Raises `OSError`; when another process holds it, that says
    so."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, SECRET_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError("another process writes this decision log") from None
    return lock


def is_free(folder: Path) -> bool:
    """Whether nobody writes there. Raises `OSError`."""
    try:
        os.close(take_lock(folder))
    except OSError as error:
        if error.errno is None:
            return False
        raise
    return True

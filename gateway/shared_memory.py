"""Memory that all processes of one gateway share, by a file that they name."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from foundation.faults import Fault
from foundation.reasons import Reason


def open_shared(path: Path, size: int) -> tuple[mmap.mmap, int]:
    """The file's `size` bytes, and its descriptor, which record locks (fcntl(2)) are taken by. New bytes are 0. Raises
    `Fault(FILE_UNREADABLE)`."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.posix_fallocate(descriptor, 0, size)  # a hole in the file would be found with the disk full
        return mmap.mmap(descriptor, size), descriptor
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error

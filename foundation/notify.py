"""Tells the service manager where this process is: sd_notify(3), which is a datagram to a Unix socket."""

from __future__ import annotations

import logging
import os
import re
import socket
import time

MAX_STATUS = 256
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_LOG = logging.getLogger(__name__)


def ready() -> None:
    """The start, or a reload, is over."""
    _tell("READY=1")


def reloading() -> None:
    """A reload begins; `ready` ends it."""
    _tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The end begins."""
    _tell("STOPPING=1")


def alive() -> None:
    """We are well: the watchdog's time begins anew."""
    _tell("WATCHDOG=1")


def status(text: str) -> None:
    """What `systemctl status` shows of us: one line."""
    _tell("STATUS=" + " ".join(text.split())[:MAX_STATUS])


def watchdog_seconds() -> float | None:
    """Within how many seconds the service manager wants to hear `alive`, over and over (sd_watchdog_enabled(3)); None
    where it does not watch this process."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not _DIGITS.fullmatch(microseconds) or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6


def _tell(state: str) -> None:
    """Where no service manager listens, nobody is told; one that does not read is not waited for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as told:
            told.connect("\0" + address[1:] if address[0] == "@" else address)
            told.send(state.encode())
    except OSError as error:
        _LOG.warning("the service manager cannot be told: %s", error)

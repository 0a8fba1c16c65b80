"""Tells the service manager where this process is: sd_notify(3), which is a datagram to a Unix socket."""

from __future__ import annotations

import logging
import os
import socket
import time

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


def _tell(state: str) -> None:
    """Where no service manager listens, nobody is told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
            told.connect("\0" + address[1:] if address[0] == "@" else address)
            told.send(state.encode())
    except OSError as error:
        _LOG.warning("the service manager cannot be told: %s", error)

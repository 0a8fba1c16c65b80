"""Ports of loopback that are free now, and that no outgoing connection takes before they are used."""

from __future__ import annotations

import contextlib
import random
import socket
from contextlib import ExitStack

# Below the range that kernels hand out for outgoing connections (Linux: 32768 on), and apart from the demo's TPMs.
_RANGE = range(10_000, 20_000)


def free_ports(count: int) -> list[int]:
    """`count` different ones."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(_RANGE, len(_RANGE)):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found

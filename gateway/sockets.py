"""The data plane's listening sockets, one for each worker, all owned by the main process.

They share one address by SO_REUSEPORT, so that the kernel spreads connections evenly. Closing one of such a set resets
what waits in it (54 of 100 queued connections were lost, seen here): so the main process holds all of them for as long
as it serves, hands them down by inheritance, and says who accepts from which.
"""

from __future__ import annotations

import socket

from foundation.faults import Fault
from foundation.reasons import Reason


def bind_all(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets bound to one address, which do not listen yet. Raises `Fault(SETTING_INVALID)` when it cannot be
    used."""
    if not count:
        return []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened: list[socket.socket] = []
    try:
        # SO_REUSEPORT would let a second gateway of this user in beside us: ask without it first.
        with socket.create_server((host, port), family=family, backlog=1) as alone:
            port = alone.getsockname()[1]
        for _ in range(count):
            opened.append(socket.socket(family, socket.SOCK_STREAM))
            _share(opened[-1], family)
            opened[-1].bind((host, port))
    except OSError as error:
        for each in opened:
            each.close()
        raise Fault(Reason.SETTING_INVALID, f"cannot listen: {error.strerror}", field="gateway.listener") from error
    return opened


def _share(bound: socket.socket, family: socket.AddressFamily) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)

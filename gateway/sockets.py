"""The data plane's listening sockets, one for each worker, all owned by the main process.

They share one address by SO_REUSEPORT, so that the kernel spreads connections evenly. Closing one of such a set resets
what waits in it (54 of 100 queued connections were lost, seen here): so the main process holds all of them for as long
as it serves, hands them down by inheritance, and says who accepts from which.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence

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


class Sockets:
    """This process's listening sockets, by what each group is for. Those that a main process before us left are taken
    over, queues and all; others are made."""

    def __init__(self, left: Mapping[str, tuple[int, ...]]) -> None:
        self._left = dict(left)
        self._taken: dict[str, Sequence[socket.socket]] = {}

    def take(self, name: str, make: Callable[[], Sequence[socket.socket]]) -> Sequence[socket.socket]:
        """The group of this name. Raises what `make` raises."""
        if name in self._taken:
            return self._taken[name]
        numbers = self._left.pop(name, ())
        found = [socket.socket(fileno=number) for number in numbers] or make()
        self._taken[name] = found
        return found

    def close_left(self) -> None:
        """Nobody wanted the rest: its address is no longer ours."""
        for numbers in self._left.values():
            for number in numbers:
                os.close(number)
        self._left.clear()

    def duplicates(self) -> dict[str, tuple[int, ...]]:
        """Descriptors of all that are open, which stay open when these close."""
        return {
            name: tuple(os.dup(each.fileno()) for each in group if each.fileno() >= 0)
            for name, group in self._taken.items()
        }

    def close(self) -> None:
        self.close_left()
        for group in self._taken.values():
            for each in group:
                each.close()

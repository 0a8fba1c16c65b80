"""A running agent's answer to its own machine: whoever connects to the socket reads how it stands, as one JSON object.

Nothing is read from who asks; who may ask is who may open the socket (mode 0600).
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foundation.faults import Fault
from foundation.listening import listen_unix, remove_dead_socket
from foundation.reasons import Reason

_SECONDS = 5.0
_PAUSE = 0.05  # seconds, when the machine is out of descriptors
_MAX_BYTES = 1 << 20

Status = Callable[[], Mapping[str, Any]]


class Control:
    """Answers at `path`."""

    def __init__(self, path: Path, status: Status) -> None:
        self._path = path
        self._status = status

    async def run(self) -> None:
        """Answer until cancelled, one after the other. Raises `Fault(SETTING_INVALID)` when the path cannot be used."""
        with listen_unix(self._path) as listening:
            try:
                while True:
                    await self._answer_next(listening)
            finally:
                listening.close()
                remove_dead_socket(self._path)

    async def _answer_next(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = await loop.sock_accept(listening)
            with connection:
                async with asyncio.timeout(_SECONDS):
                    await loop.sock_sendall(connection, json.dumps(self._status()).encode())
        except (OSError, TimeoutError):  # who asked has gone, or does not read
            await asyncio.sleep(_PAUSE)


def ask(path: Path) -> dict[str, Any]:
    """How the agent that answers at `path` stands. Blocks. Raises `Fault(SERVER_UNREACHABLE)`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(str(path))
            with connection.makefile("rb") as answer:
                found: dict[str, Any] = json.loads(answer.read(_MAX_BYTES))
                return found
    except (OSError, ValueError) as error:
        raise Fault(Reason.SERVER_UNREACHABLE, f"no agent answers at {path}", internal=str(error)) from error

"""The socket at which programs of this machine ask for decisions: `POST /v1/decide`, HTTP/1.1 over a Unix socket, so
that any client can (`curl --unix-socket`), and httptools for the parsing, so that it costs little memory.

Laws held here:
- who asks is the user that the kernel recorded at connect (SO_PEERCRED), never what a request says;
- everything is bounded: connections in all and of one user, heads, bodies; one request at a time on a connection;
- a request that is none is refused and ends the connection.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import httptools

from agent.local import LocalAnswer, Question, answer_document
from foundation.faults import Fault, problem
from foundation.fields import Fields
from foundation.listening import listen_unix, peer_uid, remove_dead_socket
from foundation.reasons import Reason

DECIDE = b"/v1/decide"
MAX_HEAD_BYTES, MAX_BODY_BYTES = 8 * 1024, 16 * 1024
MAX_CONNECTIONS, MAX_OF_ONE_USER = 256, 64

Decide = Callable[[Question], LocalAnswer]


class LocalListener:
    """Serves `decide` at `path`, mode 0666: whoever is not in the settings is refused by name, not by the folder."""

    def __init__(self, path: Path, decide: Decide) -> None:
        self._path = path
        self._decide = decide
        self._open: set[_Connection] = set()
        self._of_user: Counter[int] = Counter()

    async def run(self) -> None:
        """Serve until cancelled. Raises `Fault(SETTING_INVALID)` when the path cannot be used."""
        loop, listening = asyncio.get_running_loop(), listen_unix(self._path, 0o666)
        server = await loop.create_unix_server(lambda: _Connection(self), sock=listening)
        try:
            async with server:
                await server.serve_forever()
        finally:
            for connection in list(self._open):
                connection.end()
            remove_dead_socket(self._path)

    def admit(self, connection: _Connection) -> bool:
        """Whether there is room for it."""
        if len(self._open) >= MAX_CONNECTIONS or self._of_user[connection.uid] >= MAX_OF_ONE_USER:
            return False
        self._open.add(connection)
        self._of_user[connection.uid] += 1
        return True

    def forget(self, connection: _Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._of_user[connection.uid] -= 1

    def answer(self, method: bytes, target: bytes, body: bytes, uid: int) -> tuple[int, dict[str, Any]]:
        """Status and document."""
        try:
            if target != DECIDE:
                raise Fault(Reason.API_ROUTE_UNKNOWN)
            if method != b"POST":
                raise Fault(Reason.API_METHOD_NOT_ALLOWED)
            fields = Fields.from_json(body, "body", Reason.MESSAGE_MALFORMED, max_bytes=MAX_BODY_BYTES)
            return HTTPStatus.OK, answer_document(self._decide(Question.parse(fields, uid)))
        except Fault as fault:
            return fault.reason.status, dict(problem(fault))


class _Connection(asyncio.Protocol):
    """One connection. The names of the callbacks are httptools'."""

    def __init__(self, listener: LocalListener) -> None:
        self.uid = -1
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._size, self._target, self._body = 0, b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.uid = peer_uid(transport.get_extra_info("socket"))
        if not self._listener.admit(self):
            self._refuse(Reason.CONNECTION_LIMIT)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.forget(self)
        self._transport = None

    def pause_writing(self) -> None:
        """Who does not read answers is not read."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._size += len(data)
        if self._size > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            self._refuse(Reason.MESSAGE_TOO_LARGE)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Reason.UPGRADE_REFUSED)
        except httptools.HttpParserError:
            self._refuse(Reason.REQUEST_MALFORMED)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        keep = self._parser.should_keep_alive()
        status, document = self._listener.answer(self._parser.get_method(), self._target, self._body, self.uid)
        self._write(status, document, keep=keep)
        if keep:
            self._size, self._target, self._body = 0, b"", b""

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, reason: Reason) -> None:
        self._write(reason.status, dict(problem(Fault(reason))), keep=False)

    def _write(self, status: int, document: dict[str, Any], *, keep: bool) -> None:
        if self._transport is None:
            return
        body = json.dumps(document, separators=(",", ":")).encode()
        kind = "json" if status == HTTPStatus.OK else "problem+json"
        connection = "" if keep else "Connection: close\r\n"
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/{kind}\r\n{connection}"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if not keep:
            self._transport.close()

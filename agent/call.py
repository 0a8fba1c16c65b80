"""A call through the gateway, authenticated by the node's key over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.channel import refusal
from agent.settings import Address
from foundation.faults import Fault
from foundation.reasons import Reason

_PROBLEM = "application/problem+json"
_MAX_PROBLEM_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_CONNECT_SECONDS = 30.0
_FIRST_ERROR = 400
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # a token: RFC 9110 §5.6.2
_OWE_A_LENGTH = ("POST", "PUT", "PATCH")  # RFC 9110 §8.6: also when there is no body


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `path` goes out as it stands; `seconds` bounds the whole exchange, `None` lets it last."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    seconds: float | None = 30.0


async def call(gateway: Address, context: ssl.SSLContext, request: Call, write: Callable[[bytes], None]) -> int:
    """The status of the answer, whose body goes to `write` as it arrives. Handshake and exchange are made on a thread,
    so that a TPM's signature stops nobody. Raises the gateway's `Refusal`, `Fault(SERVER_UNTRUSTED)`,
    `Fault(REQUEST_MALFORMED)`, and `Fault(SERVER_UNREACHABLE)` also when the answer is cut off."""
    try:
        async with asyncio.timeout(request.seconds):
            exchange = _Exchange(gateway, context, request, _on_this_loop(write), await _connect(gateway))
            return await _finished(exchange)
    except OSError as error:  # a time-out is one
        raise _unreachable(gateway, error) from error


async def _connect(gateway: Address) -> socket.socket:
    """A TCP connection. Raises `OSError`."""
    loop, failure = asyncio.get_running_loop(), OSError("no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(gateway.host, gateway.port, type=socket.SOCK_STREAM):
        plain = socket.socket(family, kind, protocol)
        plain.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(plain, where)
        except OSError as error:
            plain.close()
            failure = error
        except BaseException:
            plain.close()
            raise
        else:
            return plain
    raise failure


async def _finished(exchange: _Exchange) -> int:
    """What `exchange` answers; who no longer waits ends it."""
    running = asyncio.ensure_future(asyncio.to_thread(exchange.run))
    try:
        return await asyncio.shield(running)
    finally:
        exchange.abort()
        await asyncio.gather(running, return_exceptions=True)


def _on_this_loop(write: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """`write`, for other threads: they wait until it was called here."""
    loop = asyncio.get_running_loop()

    async def call_here(chunk: bytes) -> None:
        write(chunk)

    return lambda chunk: asyncio.run_coroutine_threadsafe(call_here(chunk), loop).result()


class _Exchange:
    """One request and its answer over `plain`, a connection. `run` blocks; `abort`, from another thread, ends it."""

    def __init__(
        self,
        gateway: Address,
        context: ssl.SSLContext,
        request: Call,
        write: Callable[[bytes], None],
        plain: socket.socket,
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._write = write
        self._received = 0
        plain.setblocking(True)  # the whole exchange is bounded by whoever waits for it
        self._tls = context.wrap_socket(plain, server_hostname=gateway.host, do_handshake_on_connect=False)
        self._http = http.client.HTTPSConnection(gateway.host, gateway.port, context=context)
        self._http.sock = self._tls

    def run(self) -> int:
        try:
            return self._run()
        except ssl.SSLCertVerificationError as error:
            raise Fault(Reason.SERVER_UNTRUSTED, f"{self._gateway}: {error.verify_message}") from error
        except http.client.InvalidURL as error:
            raise Fault(Reason.REQUEST_MALFORMED, "a method or path with a space or control character") from error
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self._gateway, error, self._received) from error
        except ValueError as error:  # http.client's word for a header or path that cannot be sent
            raise Fault(Reason.REQUEST_MALFORMED, "the request cannot be written as HTTP") from error
        finally:
            self._http.close()

    def abort(self) -> None:
        """End what is under way; nothing happens where it is over."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)  # SSLSocket's own is for the thread that reads

    def _run(self) -> int:
        self._tls.do_handshake()
        self._send()
        response = self._http.getresponse()
        if response.status >= _FIRST_ERROR and response.headers.get_content_type() == _PROBLEM:
            raise refusal(response.status, response.read(_MAX_PROBLEM_BYTES))
        while chunk := response.read1(_CHUNK_BYTES):
            self._received += len(chunk)
            self._write(chunk)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return response.status

    def _send(self) -> None:
        if not _METHOD.fullmatch(self._request.method):
            raise http.client.InvalidURL("no method")
        request, given = self._request, {name.lower() for name, _ in self._request.headers}
        self._http.putrequest(request.method, request.path, skip_host="host" in given, skip_accept_encoding=True)
        if request.body is not None and "content-type" not in given:
            self._http.putheader("Content-Type", "application/octet-stream")
        if "content-length" not in given and (request.body is not None or request.method in _OWE_A_LENGTH):
            self._http.putheader("Content-Length", str(len(request.body or b"")))
        for name, value in request.headers:
            self._http.putheader(name, value)
        self._http.endheaders(request.body)


def _unreachable(gateway: Address, error: Exception, received: int = 0) -> Fault:
    what = f"cut off after {received} bytes" if received else error.__class__.__name__
    return Fault(Reason.SERVER_UNREACHABLE, f"{gateway}: {what}", internal=str(error))

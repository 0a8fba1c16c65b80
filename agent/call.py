"""A call through the gateway, authenticated by the node's key over mutual TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL

from agent.channel import refusal
from agent.settings import Address
from foundation.faults import Fault
from foundation.reasons import Reason

_PROBLEM = "application/problem+json"
_MAX_PROBLEM_BYTES = 64 * 1024
_FIRST_ERROR = 400


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `path` goes out as it stands; `seconds` bounds the whole exchange, `None` lets it last."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    seconds: float | None = 30.0


async def call(gateway: Address, context: ssl.SSLContext, request: Call, write: Callable[[bytes], None]) -> int:
    """The status of the answer, whose body goes to `write` as it arrives. The handshake's signature is made on this
    event loop's thread. Raises the gateway's `Refusal`, `Fault(SERVER_UNTRUSTED)`, and `Fault(SERVER_UNREACHABLE)`
    also when the answer is cut off."""
    url = URL(f"https://{gateway}{request.path}", encoded=True)
    timeout = aiohttp.ClientTimeout(total=request.seconds, sock_connect=30)
    received = 0
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.request(
                request.method,
                url,
                headers=request.headers,
                data=request.body,
                ssl=context,
                allow_redirects=False,
            ) as response,
        ):
            if response.status >= _FIRST_ERROR and response.content_type == _PROBLEM:
                raise refusal(response.status, await response.content.read(_MAX_PROBLEM_BYTES))
            async for chunk in response.content.iter_any():
                received += len(chunk)
                write(chunk)
            return response.status
    except aiohttp.ClientConnectorCertificateError as error:
        raise Fault(Reason.SERVER_UNTRUSTED, f"{gateway}: {error.certificate_error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        what = f"cut off after {received} bytes" if received else error.__class__.__name__
        raise Fault(Reason.SERVER_UNREACHABLE, f"{gateway}: {what}", internal=str(error)) from error

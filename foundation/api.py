"""The shell that every API of ours is served by; packages bring `ApiRoute`s with handlers that know no HTTP server.

Laws held here:
- a route has a name, and nobody reaches its handler before `ApiAuthorizer` allowed exactly this caller that name.
  The one exception is `public_application`, for listeners whose callers have no identity yet;
- who calls is never taken from a header: `foundation.callers` proves it for every request;
- a refusal is a `Fault` and goes out as `application/problem+json` (RFC 9457); anything else that goes wrong is
  `INTERNAL` with nothing but the request's id, here and in the log;
- every body, query, wait and stream is bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from foundation.clock import Clock, SystemClock
from foundation.faults import Fault, problem, retry_after
from foundation.fields import Fields
from foundation.ports import ApiAuthorizer, Caller
from foundation.reasons import Reason
from foundation.tls import own_spki_sha256

JSON = "application/json"
OCTETS = "application/octet-stream"
NDJSON = "application/x-ndjson"
NO_BODY = 0
MAX_JSON_BYTES = 64 * 1024
RECHECK_SECONDS = 0.05  # how often, at most, an open stream asks again whether it may go on
_NAME = re.compile(r"[a-z][a-z-]*(\.[a-z][a-z-]*)?", re.ASCII)
_log = logging.getLogger("sallyport.api")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a route. `parameters` are the path's, decoded; `query` holds each name at most once; `address` is
    the peer's IP address, empty on a Unix socket; `server_spki_sha256` tells the key that our side of this connection
    answered with."""

    parameters: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes = field(repr=False)  # may hold a token
    address: str = ""
    server_spki_sha256: bytes = b""
    known_caller: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Who calls. Raises `Fault(CLIENT_CERTIFICATE_REQUIRED)` on a listener that asks nobody."""
        if self.known_caller is None:
            raise Fault(Reason.CLIENT_CERTIFICATE_REQUIRED)
        return self.known_caller

    def fields(self) -> Fields:
        """The body as one strict JSON object. Raises `Fault(MESSAGE_MALFORMED)`."""
        return Fields.from_json(self.body, "body", Reason.MESSAGE_MALFORMED, max_bytes=max(len(self.body), 1))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers at once."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON

    @classmethod
    def of(cls, value: object, status: int = 200) -> Answer:
        """`value` as JSON."""
        return cls(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), status)


@dataclass(frozen=True, slots=True)
class Stream:
    """What a handler answers piece by piece, for as long as the caller may have it."""

    pieces: AbstractAsyncContextManager[AsyncIterator[bytes]]
    content_type: str = NDJSON


Handler = Callable[[Call], Awaitable[Answer | Stream]]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """A way into an API. `name` is `<area>.<verb>` and is what policy decides by (as `api.<name>`); several paths may
    share one.
    `body_limit` in bytes, `NO_BODY` where none is expected; `query` are the names that may stand in the query."""

    name: str
    method: str
    path: str
    handler: Handler
    summary: str = ""
    body_limit: int = NO_BODY
    accepts: str = JSON
    query: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not self.path.startswith("/"):
            raise ValueError(f"no route is served without a name that policy can decide by: {self.name!r} {self.path}")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the shell waits, in seconds: for a request's body, and for a handler's answer."""

    body: float = 10.0
    handler: float = 30.0


Identify = Callable[[web.BaseRequest], Awaitable[Caller]]
_Admit = Callable[[web.BaseRequest], Awaitable[Caller | None]]


def api_application(
    routes: Iterable[ApiRoute],
    identify: Identify,
    authorizer: ApiAuthorizer,
    *,
    patience: Patience | None = None,
    clock: Clock | None = None,
) -> web.Application:
    """The application that serves `routes` to callers that `identify` proves and `authorizer` allows."""

    def admission(route: ApiRoute) -> _Admit:
        async def admit(request: web.BaseRequest) -> Caller:
            caller = await identify(request)
            await authorizer.authorise(caller, route.name, route.method)
            return caller

        return admit

    return _application(routes, admission, patience, clock)


def public_application(
    routes: Iterable[ApiRoute], *, patience: Patience | None = None, clock: Clock | None = None
) -> web.Application:
    """The application of a listener whose callers have no identity yet. Its handlers judge what they are sent."""

    async def admit(request: web.BaseRequest) -> None:
        return None

    return _application(routes, lambda route: admit, patience, clock)


def _application(
    routes: Iterable[ApiRoute],
    admission: Callable[[ApiRoute], _Admit],
    patience: Patience | None,
    clock: Clock | None,
) -> web.Application:
    application = web.Application(middlewares=[_faults_to_problems])
    for route in routes:
        serving = _Serving(route, admission(route), patience or Patience(), clock or SystemClock())
        application.router.add_route(route.method, route.path, serving.serve)
    return application


@dataclass(frozen=True, slots=True)
class _Serving:
    """One route at work: admit, read, handle, answer, in this order."""

    route: ApiRoute
    admit: _Admit
    patience: Patience
    clock: Clock

    async def serve(self, request: web.Request) -> web.StreamResponse:
        caller = await self.admit(request)
        call = await self._read(request, caller)
        try:
            async with asyncio.timeout(self.patience.handler):
                answer = await self.route.handler(call)
        except TimeoutError:
            raise Fault(Reason.OVERLOADED, "no answer in time") from None
        if isinstance(answer, Stream):
            return await self._stream(request, answer)
        return web.Response(body=answer.body, status=answer.status, content_type=answer.content_type)

    async def _read(self, request: web.Request, caller: Caller | None) -> Call:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        return Call(
            parameters=dict(request.match_info),
            query=_query(request, self.route.query),
            body=await self._body(request),
            address=str(peer[0]) if isinstance(peer, tuple) else "",
            server_spki_sha256=own_spki_sha256(request.transport),
            known_caller=caller,
        )

    async def _body(self, request: web.Request) -> bytes:
        limit = self.route.body_limit
        if not request.can_read_body:
            return b""
        if limit and request.content_type != self.route.accepts:
            raise Fault(Reason.MESSAGE_MALFORMED, f"expected {self.route.accepts}", field="content-type")
        body = bytearray()
        try:
            async with asyncio.timeout(self.patience.body):
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > limit:
                        raise Fault(Reason.MESSAGE_TOO_LARGE, f"at most {limit} bytes are allowed", field="body")
        except TimeoutError:
            raise Fault(Reason.REQUEST_TIMEOUT) from None
        return bytes(body)

    async def _stream(self, request: web.Request, answer: Stream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": answer.content_type, **_HEADERS})
        async with answer.pieces as pieces:
            await response.prepare(request)
            checked = self.clock.monotonic()
            async for piece in pieces:
                if self.clock.monotonic() - checked >= RECHECK_SECONDS:
                    await self._may_go_on(request)
                    checked = self.clock.monotonic()
                async with asyncio.timeout(self.patience.handler):  # a reader that does not read
                    await response.write(piece)
        return response

    async def _may_go_on(self, request: web.Request) -> None:
        try:
            await self.admit(request)
        except BaseException:
            # Nothing can be said any more once the answer has begun: end it so that it cannot pass for complete.
            if request.transport is not None:
                request.transport.abort()
            raise


_REQUEST_ID = web.RequestKey("request_id", str)
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@web.middleware
async def _faults_to_problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The one mapping from what went wrong to what goes out."""
    request_id = request[_REQUEST_ID] = secrets.token_hex(8)
    try:
        response = await handler(request)
    except Fault as fault:
        _log.info("refused %s %s: %s", request.method, request_id, fault.reason.code)
        response = _problem(fault, request_id)
    except web.HTTPException as error:
        response = _problem(_routing_fault(error), request_id)
    except Exception as error:  # whatever it is, nothing of it goes out
        response = _problem(_internal(error, request_id), request_id)
    if not response.prepared:
        response.headers.update({**_HEADERS, "X-Request-Id": request_id})
    return response


def _problem(fault: Fault, request_id: str) -> web.Response:
    body = problem(fault)
    body["instance"] = f"urn:sallyport:request:{request_id}"
    response = web.json_response(body, status=fault.reason.status, content_type="application/problem+json")
    again = retry_after(fault.reason)
    if again:
        response.headers["Retry-After"] = str(again)
    return response


def _internal(error: Exception, request_id: str) -> Fault:
    # The message may quote what was being handled, secrets included: only its type and the lines of code are logged.
    where = "".join(traceback.format_tb(error.__traceback__, limit=-8))
    _log.error("failed %s: %s\n%s", request_id, type(error).__name__, where)
    return Fault(Reason.INTERNAL)


def _routing_fault(error: web.HTTPException) -> Fault:
    by_status = {404: Reason.API_ROUTE_UNKNOWN, 405: Reason.API_METHOD_NOT_ALLOWED, 413: Reason.MESSAGE_TOO_LARGE}
    return Fault(by_status.get(error.status, Reason.REQUEST_MALFORMED))


def _query(request: web.Request, allowed: tuple[str, ...]) -> Mapping[str, str]:
    found: dict[str, Any] = {}
    for name, value in request.query.items():
        if name not in allowed or name in found:
            raise Fault(Reason.MESSAGE_MALFORMED, "unknown or repeated", field=f"query.{name[:64]}")
        found[name] = value
    return found

"""The shell of every API, over real sockets: who may call, what goes out, what is bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from foundation.api import Answer, ApiRoute, Call, Patience, Stream, api_application, public_application
from foundation.callers import ROLES, CertificateCallers, LocalCallers
from foundation.clock import Clock, SystemClock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord, State
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.serving import ListenerLimits, serve_api, serve_unix
from foundation.tls import client_context, server_context
from tests.fakes.clock import ManualClock
from tests.support.certificates import SmallAuthority

DOMAIN = "fleet.example"
ADA = f"spiffe://{DOMAIN}/operator/ada"
SECRET = "hunter2-do-not-tell"


class Directory:
    """Implements `IdentityDirectory`: everybody stands, but who was struck out."""

    def __init__(self) -> None:
        self.refuse: Reason | None = None
        self.asked: list[tuple[str, str]] = []

    async def standing(self, identity: SpiffeId, serial: str) -> IdentityRecord:
        self.asked.append((str(identity), serial))
        if self.refuse:
            raise Fault(self.refuse)
        return IdentityRecord(identity, State.ACTIVE, 1, roles=("viewer",))


class Authorizer:
    """Implements `ApiAuthorizer`: allows the names in `allowed`."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = set(allowed)
        self.asked: list[tuple[Caller, str, str]] = []

    async def authorise(self, caller: Caller, route: str, method: str) -> str:
        self.asked.append((caller, route, method))
        if route not in self.allowed:
            raise Fault(Reason.ROLE_MISSING)
        return "d-1"


@dataclass
class Api:
    """An API under test and a session of its client."""

    url: str
    directory: Directory
    authorizer: Authorizer
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, **given: Any) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, **given) as response:
            return response.status, await response.json(content_type=None)


async def _hello(call: Call) -> Answer:
    return Answer.of({"hello": str(call.caller.id), "roles": list(call.caller.roles)})


async def _echo(call: Call) -> Answer:
    fields = call.fields()
    text = fields.text("text")
    fields.finish()
    return Answer.of({"text": text, "query": dict(call.query)})


async def _broken(call: Call) -> Answer:
    raise RuntimeError(SECRET)


async def _slow(call: Call) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


ROUTES = [
    ApiRoute("test.hello", "GET", "/v1/hello", _hello),
    ApiRoute("test.echo", "POST", "/v1/echo", _echo, body_limit=64, query=("q",)),
    ApiRoute("test.broken", "GET", "/v1/broken", _broken),
    ApiRoute("test.slow", "GET", "/v1/slow", _slow),
    ApiRoute("secret.show", "GET", "/v1/secret", _hello),
]
PATIENCE = Patience(body=0.2, handler=0.2)


@asynccontextmanager
async def _tls_api(
    authority: SmallAuthority, routes: list[ApiRoute], *, identity: str = ADA, clock: Clock | None = None
) -> AsyncIterator[Api]:
    directory = Directory()
    authorizer = Authorizer("test.hello", "test.echo", "test.broken", "test.slow", "test.stream")
    callers = CertificateCallers(DOMAIN, directory, SystemClock())
    application = api_application(routes, callers.identify, authorizer, patience=PATIENCE, clock=clock)
    context = server_context(authority.server(), client_roots=authority.pem)
    own = client_context(authority.pem, pair=authority.client(identity))
    async with (
        serve_api(application, lambda: context, "127.0.0.1", 0) as (_, port),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=own)) as session,
    ):
        yield Api(f"https://localhost:{port}", directory, authorizer, session)


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


@pytest.fixture
async def api(authority: SmallAuthority) -> AsyncIterator[Api]:
    async with _tls_api(authority, ROUTES) as api:
        yield api


async def test_the_caller_is_the_certificate(api: Api) -> None:
    status, body = await api.call("GET", "/v1/hello", headers={"X-Forwarded-Client-Cert": "URI=spiffe://x/operator/y"})
    assert (status, body) == (200, {"hello": ADA, "roles": ["viewer"]})
    caller, route, method = api.authorizer.asked[0]
    assert (str(caller.id), caller.via, route, method) == (ADA, "certificate", "test.hello", "GET")
    assert caller.serial == api.directory.asked[0][1]


async def test_a_denial_is_a_problem_with_its_remedy(api: Api) -> None:
    status, body = await api.call("GET", "/v1/secret")
    assert status == 403
    assert body["reason"] == "role_missing"
    assert body["remedy"] == Reason.ROLE_MISSING.remedy
    assert body["instance"].startswith("urn:sallyport:request:")


async def test_the_directory_is_asked_for_every_request_on_one_connection(api: Api) -> None:
    assert (await api.call("GET", "/v1/hello"))[0] == 200
    api.directory.refuse = Reason.IDENTITY_REVOKED
    status, body = await api.call("GET", "/v1/hello")
    assert (status, body["reason"]) == (403, "identity_revoked")


async def test_what_breaks_inside_stays_inside(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        status, body = await api.call("GET", "/v1/broken")
    assert (status, body["reason"]) == (500, "internal")
    assert SECRET not in json.dumps(body)
    assert SECRET not in caplog.text
    assert "RuntimeError" in caplog.text
    assert body["instance"].rpartition(":")[2] in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "given", "reason"),
    [
        ("GET", "/v1/nowhere", {}, "api_route_unknown"),
        ("DELETE", "/v1/hello", {}, "api_method_not_allowed"),
        ("POST", "/v1/echo", {"json": {"text": "x" * 80}}, "message_too_large"),
        ("POST", "/v1/echo", {"data": b'{"text": "x"}'}, "message_malformed"),
        ("POST", "/v1/echo", {"json": {"text": "x", "more": 1}}, "message_malformed"),
        ("POST", "/v1/echo", {"json": [1]}, "message_malformed"),
        ("POST", "/v1/echo?q=1&q=2", {"json": {"text": "x"}}, "message_malformed"),
        ("POST", "/v1/echo?other=1", {"json": {"text": "x"}}, "message_malformed"),
        ("GET", "/v1/hello", {"data": b"a body"}, "message_too_large"),
        ("GET", "/v1/slow", {}, "overloaded"),
    ],
)
async def test_bad_requests_are_named(api: Api, method: str, path: str, given: dict[str, Any], reason: str) -> None:
    status, body = await api.call(method, path, **given)
    assert body["reason"] == reason
    assert status == Reason.from_code(reason).status


async def test_duplicate_keys_are_refused(api: Api) -> None:
    raw = b'{"text": "a", "text": "b"}'
    status, body = await api.call("POST", "/v1/echo", data=raw, headers={"Content-Type": "application/json"})
    assert (status, body["reason"]) == (400, "message_malformed")


async def test_a_body_that_does_not_come_is_not_waited_for(api: Api) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    status, body = await api.call("POST", "/v1/echo", data=never(), headers={"Content-Type": "application/json"})
    assert (status, body["reason"]) == (408, "request_timeout")


async def test_another_trust_domain_is_not_ours(authority: SmallAuthority) -> None:
    async with _tls_api(authority, ROUTES, identity="spiffe://other.example/operator/ada") as api:
        status, body = await api.call("GET", "/v1/hello")
    assert (status, body["reason"]) == (401, "client_certificate_invalid")
    assert api.directory.asked == []


async def test_a_stream_ends_when_its_caller_may_no_longer_have_it(authority: SmallAuthority) -> None:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    @asynccontextmanager
    async def lines() -> AsyncIterator[AsyncIterator[bytes]]:
        async def read() -> AsyncIterator[bytes]:
            while True:
                yield await pieces.get()

        yield read()

    async def follow(call: Call) -> Stream:
        return Stream(lines())

    clock = ManualClock()
    route = ApiRoute("test.stream", "GET", "/v1/stream", follow)
    async with (
        _tls_api(authority, [route], clock=clock) as api,
        api.session.get(f"{api.url}/v1/stream") as response,
    ):
        pieces.put_nowait(b"one\n")
        assert await response.content.readline() == b"one\n"
        api.directory.refuse = Reason.IDENTITY_REVOKED
        clock.advance(1)
        pieces.put_nowait(b"two\n")
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(response.content.readline(), 5)


def test_no_route_without_a_name() -> None:
    for name in ("", "Hello", "a.b.c", "a b"):
        with pytest.raises(ValueError, match="name"):
            ApiRoute(name, "GET", "/v1/hello", _hello)


async def test_a_public_listener_knows_nobody(authority: SmallAuthority) -> None:
    context = server_context(authority.server(), client_roots=None)
    own = client_context(authority.pem)
    async with (
        serve_api(public_application(ROUTES[:1]), lambda: context, "127.0.0.1", 0) as (_, port),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=own)) as session,
        session.get(f"https://localhost:{port}/v1/hello") as response,
    ):
        assert response.status == 401


async def test_the_machines_root_calls_over_the_socket(tmp_path: Path) -> None:
    authorizer = Authorizer("test.hello")
    path = tmp_path / "api.sock"
    application = api_application(ROUTES, LocalCallers(DOMAIN).identify, authorizer)
    async with serve_unix(application, path), _unix(path) as session, session.get("http://localhost/v1/hello") as got:
        body = await got.json()
        mode = path.stat().st_mode & 0o777
    assert body["hello"] == f"spiffe://{DOMAIN}/operator/local-uid-{os.geteuid()}"
    assert body["roles"] == list(ROLES)
    assert mode == 0o600
    assert not path.exists()


async def test_another_user_does_not_call_over_the_socket(tmp_path: Path) -> None:
    callers = LocalCallers(DOMAIN, lambda request: 65534)
    path = tmp_path / "api.sock"
    application = api_application(ROUTES, callers.identify, Authorizer("test.hello"))
    async with serve_unix(application, path), _unix(path) as session, session.get("http://localhost/v1/hello") as got:
        assert (got.status, (await got.json())["reason"]) == (403, "kind_not_allowed")


async def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    application = api_application([], LocalCallers(DOMAIN).identify, Authorizer())
    async with serve_unix(application, path):
        with pytest.raises(Fault):
            async with serve_unix(api_application([], LocalCallers(DOMAIN).identify, Authorizer()), path):
                pass
        assert path.exists()
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serve_unix(api_application([], LocalCallers(DOMAIN).identify, Authorizer()), path):
        assert path.exists()


async def test_a_new_context_serves_the_next_connection(authority: SmallAuthority) -> None:
    contexts = [server_context(authority.server(name), client_roots=None) for name in ("first", "second")]
    seen = []

    async def key(call: Call) -> Answer:
        return Answer.of(call.server_spki_sha256.hex())

    application = public_application([ApiRoute("test.key", "GET", "/v1/key", key)])
    async with serve_api(application, lambda: contexts[len(seen)], "127.0.0.1", 0) as (_, port):
        for _ in contexts:
            connector = aiohttp.TCPConnector(ssl=client_context(authority.pem))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(f"https://localhost:{port}/v1/key") as response,
            ):
                seen.append(await response.json())
    assert seen == [context.spki_sha256.hex() for context in contexts]


async def test_connections_of_one_address_are_bounded(authority: SmallAuthority) -> None:
    context = server_context(authority.server(), client_roots=None)
    limits = ListenerLimits(per_address=3)
    async with serve_api(public_application([]), lambda: context, "127.0.0.1", 0, limits) as (host, port):
        held = [await asyncio.open_connection(host, port) for _ in range(3)]
        reader, writer = await asyncio.open_connection(host, port)
        assert await asyncio.wait_for(reader.read(1), 5) == b""
        for _, each in [*held, (reader, writer)]:
            each.close()


async def test_a_handshake_that_does_not_come_is_not_waited_for(authority: SmallAuthority) -> None:
    context = server_context(authority.server(), client_roots=None)
    limits = ListenerLimits(handshake=0.1)
    async with serve_api(public_application([]), lambda: context, "127.0.0.1", 0, limits) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()


async def test_a_request_that_does_not_come_is_not_waited_for(authority: SmallAuthority) -> None:
    context = server_context(authority.server(), client_roots=None)
    own: ssl.SSLContext = client_context(authority.pem)
    limits = ListenerLimits(idle=0.2)
    async with serve_api(public_application([]), lambda: context, "127.0.0.1", 0, limits) as (host, port):
        reader, writer = await asyncio.open_connection(host, port, ssl=own, server_hostname="localhost")
        writer.write(b"GET /v1/hello HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


def _unix(path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)))

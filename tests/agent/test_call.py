"""Calls through a gateway with the key in the TPM: what arrives, what is refused, what is cut."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding

from agent.call import Call, call
from agent.channel import Refusal
from agent.enrol import enrol
from agent.keys import client_context, stored_key, tpm_for
from agent.settings import Address
from agent.store import Identity, NodeStore
from foundation.faults import Fault, problem
from foundation.reasons import Reason
from tests.support.agent import EagerClock, quiet, settings_for
from tests.support.authority import SmallAuthority
from tests.support.swtpm import EmulatedTpm, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_TPM_CC_SIGN = 0x15D


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


@asynccontextmanager
async def gateway(authority: SmallAuthority, handler: Handler) -> AsyncIterator[Address]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_pem)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.root.public_bytes(Encoding.DER))
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield Address("127.0.0.1", runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def enrolled(tmp_path: Path, authority: SmallAuthority, device: EmulatedTpm | None) -> Identity:
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, device)
        return await enrol(settings, authority.token, NodeStore(settings.directory), EagerClock(), quiet)


async def test_a_call_arrives_as_it_was_written_signed_in_the_tpm(
    tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority
) -> None:
    identity = await enrolled(tmp_path, authority, swtpm)
    seen: list[object] = []

    async def answer(request: web.Request) -> web.Response:
        certificate = request.get_extra_info("peercert")
        seen.extend((certificate["subjectAltName"], request.method, request.raw_path, request.headers.getall("X-A")))
        return web.Response(body=(await request.read())[::-1])

    settings = settings_for(tmp_path, "127.0.0.1:1", swtpm)
    got: list[bytes] = []
    async with gateway(authority, answer) as address:
        with tpm_for(identity.key, settings) as tpm:
            key = stored_key(identity.key, tpm)
            before = swtpm.command_codes().count(_TPM_CC_SIGN)
            request = Call("PUT", "/v3/kv%2Frange?x=%20a", (("X-A", "1"), ("X-A", "2")), b"abc")
            assert await call(address, client_context(identity, key), request, got.append) == 200
            assert swtpm.command_codes().count(_TPM_CC_SIGN) == before + 1
    assert b"".join(got) == b"cba"
    uri = (("URI", "spiffe://test/node/edge-1"),)
    assert seen == [uri, "PUT", "/v3/kv%2Frange?x=%20a", ["1", "2"]]


async def test_a_stream_arrives_piece_by_piece_and_its_cut_is_told(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)
    arrived = asyncio.Event()

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await arrived.wait()
        assert request.transport
        request.transport.abort()
        return response

    def write(chunk: bytes) -> None:
        assert chunk == b"first"
        arrived.set()

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, watch) as address:
        with pytest.raises(Fault, match="cut off after 5 bytes") as caught:
            await call(address, context, Call("GET", "/watch", seconds=None), write)
    assert caught.value.reason is Reason.SERVER_UNREACHABLE


async def test_a_denial_is_told_with_reason_and_decision(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)

    async def deny(_request: web.Request) -> web.Response:
        body = {**problem(Fault(Reason.NO_GRANT, "not yours")), "decision": "d-1"}
        return web.Response(status=403, body=json.dumps(body).encode(), content_type="application/problem+json")

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, deny) as address:
        with pytest.raises(Refusal) as caught:
            await call(address, context, Call("GET", "/"), lambda _chunk: None)
    assert (caught.value.reason, caught.value.detail, caught.value.decision) == (Reason.NO_GRANT, "not yours", "d-1")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"reason": "no_such"}', b'{"reason": 7}', b'{"reason":"no_grant","detail":[]}']
)
async def test_a_problem_that_is_not_ours_is_not_believed(
    tmp_path: Path, authority: SmallAuthority, body: bytes
) -> None:
    identity = await enrolled(tmp_path, authority, None)

    async def deny(_request: web.Request) -> web.Response:
        return web.Response(status=403, body=body, content_type="application/problem+json")

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, deny) as address:
        with pytest.raises(Refusal) as caught:
            await call(address, context, Call("GET", "/"), lambda _chunk: None)
    assert caught.value.reason is Reason.INTERNAL


async def test_redirects_are_not_followed(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)
    asked: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound("/elsewhere")

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, redirect) as address:
        assert await call(address, context, Call("GET", "/here"), lambda _chunk: None) == 302
    assert asked == ["/here"]


async def test_a_gateway_of_another_authority_is_not_called(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(SmallAuthority(tmp_path), answer) as address:
        with pytest.raises(Fault) as caught:
            await call(address, context, Call("GET", "/"), lambda _chunk: None)
    assert caught.value.reason is Reason.SERVER_UNTRUSTED
    assert asked == []


async def test_nobody_there_is_told(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)
    context = client_context(identity, stored_key(identity.key, None))
    with pytest.raises(Fault) as caught:
        await call(Address("127.0.0.1", 1), context, Call("GET", "/"), lambda _chunk: None)
    assert caught.value.reason is Reason.SERVER_UNREACHABLE


async def test_who_no_longer_waits_ends_the_call(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        asked.set()
        while request.transport and not request.transport.is_closing():
            await asyncio.sleep(0.01)
        gone.set()
        return web.Response()

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, silent) as address:
        waiting = asyncio.create_task(call(address, context, Call("GET", "/", seconds=None), lambda _chunk: None))
        await asyncio.wait_for(asked.wait(), 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 10)
        await asyncio.wait_for(gone.wait(), 10)
        with pytest.raises(Fault, match="TimeoutError") as caught:
            await call(address, context, Call("GET", "/", seconds=0.05), lambda _chunk: None)
    assert caught.value.reason is Reason.SERVER_UNREACHABLE


@pytest.mark.parametrize(
    "request_",
    [
        Call("GET", "/a b"),
        Call("GET", "/a\r\nX: y"),
        Call("GET", "/ä"),
        Call("G T", "/"),
        Call("GET", "/", (("X", "a\r\nb: c"),)),
    ],
)
async def test_what_is_no_request_is_not_sent(tmp_path: Path, authority: SmallAuthority, request_: Call) -> None:
    identity = await enrolled(tmp_path, authority, None)
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, answer) as address:
        with pytest.raises(Fault) as caught:
            await call(address, context, request_, lambda _chunk: None)
    assert caught.value.reason is Reason.REQUEST_MALFORMED
    assert asked == []


async def test_an_answer_shorter_than_it_says_is_cut_off(tmp_path: Path, authority: SmallAuthority) -> None:
    identity = await enrolled(tmp_path, authority, None)

    async def short(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "10"})
        await response.prepare(request)
        await response.write(b"first")
        assert request.transport
        request.transport.close()
        return response

    context = client_context(identity, stored_key(identity.key, None))
    async with gateway(authority, short) as address:
        with pytest.raises(Fault, match="cut off after 5 bytes"):
            await call(address, context, Call("GET", "/"), lambda _chunk: None)

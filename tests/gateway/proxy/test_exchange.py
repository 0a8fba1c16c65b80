"""One exchange in all its turns: bodies, streams, refusals, retries, and every way to end early."""

from __future__ import annotations

import asyncio
import base64
import gc
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.reasons import Reason
from foundation.tls import client_context
from gateway.proxy.exchange import NEVER, HttpExchange
from gateway.proxy.services import GatewayListenerSettings
from gateway.proxy.upgrade import websocket_accept
from gateway.streams.registry import Exchange
from policies.model import Query
from policies.routes import RouteClass
from tests.fakes.trust import ALLOW, DENY, FakeEngine, spiffe
from tests.support.gateway import DataPlane, RawUpstream, gateway_to, request_bytes, route, saying

KEY = base64.b64encode(b"0123456789abcdef").decode()
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")


async def test_bodies_of_either_framing_arrive_as_they_were_sent(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            if b"transfer-encoding: chunked" in head:
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            else:
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async with gateway_to(RawUpstream(echo), tmp_path) as plane:
        client = await plane.connect()
        big = bytes(range(256)) * 8192
        answered = await client.ask(request_bytes("POST", "/x", body=big))
        assert answered.body == big
        chunks = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        answered = await client.ask(request_bytes("PUT", "/x", "Transfer-Encoding: chunked") + chunks)
        assert answered.body == b"abcdefg"
        assert plane.registry.open_count == 0


async def test_an_answer_streams_before_it_is_whole(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with gateway_to(RawUpstream(watch), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/watch"))
        assert (await client.head())[0] == 200
        chunks = client.chunks()
        assert await anext(chunks) == b"one"
        assert plane.registry.open_count == 1
        go_on.set()
        assert [piece async for piece in chunks] == [b"two"]
        await plane.until(lambda: plane.registry.open_count == 0)


@pytest.mark.parametrize(
    ("method", "answer", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200, "9"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, "9"),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("POST", b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, "0"),
    ],
)
async def test_answers_without_a_body_leave_the_connection_whole(
    tmp_path: Path, method: str, answer: bytes, status: int, length: str
) -> None:
    upstream = RawUpstream(saying(answer))
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):
            answered = await client.ask(request_bytes(method, "/x"), method=method)
            assert (answered.status, answered.header("content-length")) == (status, length)
    assert upstream.dials == 1


async def test_an_answer_that_ends_with_its_connection_is_sent_in_chunks(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(saying(b"HTTP/1.0 200 OK\r\n\r\nall of it", close=True)), tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):
            answered = await client.get()
            assert (answered.header("transfer-encoding"), answered.body) == ("chunked", b"all of it")


async def test_a_continue_is_passed_on_to_who_asked(tmp_path: Path) -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"expect: 100-continue\r\n" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(3)
        writer.write(
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body
        )

    async with gateway_to(RawUpstream(careful), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", "Expect: 100-continue", "Content-Length: 3"))
        assert (await client.head())[0] == 100
        client.send(b"abc")
        assert (await client.head())[0] == 103
        assert (await client.answer()).body == b"abc"


async def test_an_early_answer_ends_the_upload_and_the_connection(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(saying(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", "Content-Length: 100000") + b"a" * 10)
        answered = await client.answer()
        assert (answered.status, answered.body, answered.header("connection")) == (413, b"no", "close")
        client.send(b"b" * 300_000)  # dropped up to a bound, then the connection ends
        assert await client.ended() == b""


async def test_a_client_that_goes_takes_its_upstream_with_it(tmp_path: Path) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        began.set()
        await reader.read()
        ended.set()

    async with gateway_to(RawUpstream(watch), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/watch"))
        await began.wait()
        client.close()
        async with asyncio.timeout(10):
            await ended.wait()
        await plane.until(lambda: plane.registry.open_count == 0)


async def test_half_an_answer_ends_the_connection_without_a_goodbye(tmp_path: Path) -> None:
    half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
    async with gateway_to(RawUpstream(saying(half, close=True)), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        await client.head()
        assert await client.ended() == b"3\r\none\r\n"


async def test_a_slow_reader_holds_back_the_upstream(tmp_path: Path) -> None:
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        block = bytes(1 << 16)
        while written < 1 << 30:
            writer.write(block)
            await writer.drain()
            written += len(block)

    async with gateway_to(RawUpstream(flood), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        await client.head()
        client.writer.transport.pause_reading()
        await plane.until(lambda: any(each._full_until < NEVER for each in plane.listener.connections))
        before = -1
        while before != written:  # until the kernel's buffers are full too
            before = written
            await asyncio.sleep(0.2)
        assert written < 64 << 20
        await plane.advance(plane.settings.body_timeout + 1)
        assert plane.listener.open_count == 0


async def test_a_slow_upstream_holds_back_the_client(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    async with gateway_to(RawUpstream(deaf), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", f"Content-Length: {1 << 30}"))
        sent = await client.send_until_full(bytes(1 << 16), 1 << 30)
        assert sent < 64 << 20
        await plane.advance(plane.settings.body_timeout + 1)
        assert (await client.answer()).reason == Reason.UPSTREAM_TIMEOUT.code


# --- refusals ---------------------------------------------------------------------------------------------


async def test_a_denial_says_why_and_keeps_the_connection(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.engine.answer = lambda query: DENY
        client = await plane.connect()
        for body in (b"", b"x" * 1000):
            answered = await client.ask(request_bytes("POST", "/x", body=body))
            assert (answered.status, answered.reason) == (403, "no_grant")
            assert answered.header("content-type") == "application/problem+json"
            assert answered.header("x-sallyport-decision") == plane.recorded.entries[-1].id
            assert answered.header("connection") == ""
        plane.engine.answer = lambda query: ALLOW
        assert (await client.get()).status == 200
    assert upstream.dials == 1
    assert [entry.allow for entry in plane.recorded.entries] == [False, False, True]


async def test_a_denial_of_a_large_body_ends_the_connection_after_it_can_be_read(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        plane.engine.answer = lambda query: DENY
        for lines in (
            ("Content-Length: 99999999",),
            ("Transfer-Encoding: chunked",),
            ("Expect: 100-continue", "Content-Length: 3"),
        ):
            client = await plane.connect()
            answered = await client.ask(request_bytes("POST", "/x", *lines))
            assert (answered.reason, answered.header("connection")) == ("no_grant", "close")
            await plane.advance(plane.settings.linger_timeout + 0.5)
            assert await client.ended() == b""


@pytest.mark.parametrize(
    ("raw", "reason", "keeps"),
    [
        (request_bytes("GET", "/a//b"), Reason.PATH_AMBIGUOUS, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Reason.REQUEST_AMBIGUOUS, False),
        (b"nonsense\r\n\r\n", Reason.REQUEST_MALFORMED, False),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", Reason.REQUEST_MALFORMED, False),
    ],
)
async def test_what_is_no_request_is_told_so_and_recorded(
    tmp_path: Path, raw: bytes, reason: Reason, keeps: bool
) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        answered = await client.ask(raw)
        assert (answered.status, answered.reason) == (reason.status, reason.code)
        assert (answered.header("connection") == "") is keeps
        assert [entry.reasons for entry in plane.recorded.entries] == [(reason.code,)]


async def test_no_route_and_no_revision_are_refused(tmp_path: Path) -> None:
    async with RawUpstream().running() as address:
        plane = DataPlane(tmp_path, (route(address, prefix=("v1",)),))
        async with plane.running():
            client = await plane.connect()
            assert (await client.get("/v2")).reason == Reason.ROUTE_UNKNOWN.code
            plane.store.current = replace(plane.store.current, policy=None)
            assert (await client.get("/v1")).reason == Reason.REVISION_MISSING.code


async def test_a_decision_that_cannot_be_recorded_is_none(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, route_class=RouteClass.CRITICAL) as plane:
        plane.recorded.refuse = True
        client = await plane.connect()
        assert (await client.get()).reason == Reason.DECISION_UNRECORDED.code
    assert upstream.dials == 0


async def test_a_body_beyond_the_routes_bound_is_refused(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(saying(b"", close=False)), tmp_path, max_body=10) as plane:
        client = await plane.connect()
        assert (await client.ask(request_bytes("POST", "/x", body=b"x" * 11))).reason == Reason.BODY_TOO_LARGE.code
        client = await plane.connect()
        chunks = b"b\r\n01234567890\r\n"
        answered = await client.ask(request_bytes("POST", "/x", "Transfer-Encoding: chunked") + chunks)
        assert answered.reason == Reason.BODY_TOO_LARGE.code


# --- WebSocket --------------------------------------------------------------------------------------------


def websocket_upstream(*, answer_key: str = KEY) -> RawUpstream:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.request(reader)
        accept = websocket_accept(answer_key.encode())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\nhello" % accept
        )
        while data := await reader.read(65536):
            writer.write(data.upper())

    upstream = RawUpstream(switch)
    return upstream


async def test_a_websocket_is_joined_both_ways(tmp_path: Path) -> None:
    upstream = websocket_upstream()
    async with gateway_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/ws", *UPGRADE))
        status, headers = await client.head()
        assert (status, dict(headers)["upgrade"]) == (101, "websocket")
        assert await client.reader.readexactly(5) == b"hello"
        client.send(b"ping")
        assert await client.reader.readexactly(4) == b"PING"
        assert plane.registry.open_count == 1
        assert plane.engine.asked == []
        client.close()
        await plane.until(lambda: plane.registry.open_count == 0)
    assert b"connection: upgrade\r\nupgrade: websocket\r\n" in upstream.seen[0]


# --- time, number and end ---------------------------------------------------------------------------------


async def test_a_head_that_comes_too_slowly_is_told_so(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        client.send(b"GET / HT")
        await plane.until(lambda: any(each._held for each in plane.listener.connections))
        await plane.advance(5)
        client.send(b"TP/1.1\r\n")
        await plane.advance(6)
        assert (await client.answer()).reason == Reason.REQUEST_TIMEOUT.code


async def test_idle_connections_end_in_silence(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        fresh, used = await plane.connect(), await plane.connect()
        await used.get()
        await plane.advance(plane.settings.idle_timeout + 1)
        assert (await fresh.ended(), await used.ended()) == (b"", b"")


async def test_an_identity_has_a_bounded_number_of_connections(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(connections_per_identity=2)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        plane.know("edge-2")
        pair = plane.pair()
        first, second = await plane.connect(pair), await plane.connect(pair)
        assert (await first.get()).status == (await second.get()).status == 200
        third = await plane.connect(pair)
        answered = await third.answer()
        assert (answered.status, answered.reason) == (429, Reason.CONNECTION_LIMIT.code)
        assert answered.header("retry-after") == "1"
        assert plane.recorded.entries[-1].reasons == (Reason.CONNECTION_LIMIT.code,)
        assert plane.recorded.entries[-1].identity == str(spiffe())
        assert plane.metrics.refused == [Reason.CONNECTION_LIMIT]
        assert (await (await plane.connect(plane.pair("edge-2"))).get()).status == 200
        first.close()
        await plane.until(lambda: plane.registry.connections_of(spiffe()) == 1)
        assert (await (await plane.connect(pair)).get()).status == 200


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        client.send(b"".join(request_bytes("GET", f"/{i}") for i in range(50)))
        assert [(await client.answer()).status for _ in range(50)] == [200] * 50
        assert [entry.target for entry in plane.recorded.entries] == [f"/{i}" for i in range(50)]


async def test_a_client_that_asks_and_never_reads_is_not_answered_without_bound(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + bytes(50_000)
    async with gateway_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await plane.connect()
        client.writer.transport.pause_reading()
        assert await client.send_until_full(request_bytes("GET", "/" + "a" * 4000) * 50, 64 << 20) < 64 << 20
        assert len(plane.recorded.entries) < 2000
        (connection,) = plane.listener.connections
        assert len(connection._held) < 1 << 20


async def test_draining_lets_what_is_under_way_end(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.request(reader)
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream = RawUpstream(slow)
    async with gateway_to(upstream, tmp_path) as plane:
        idle, busy = await plane.connect(), await plane.connect()
        busy.send(request_bytes("GET", "/x"))
        await plane.until(lambda: bool(upstream.seen))
        draining = asyncio.create_task(plane.listener.drain(30))
        assert await idle.ended() == b""
        with pytest.raises((OSError, ssl.SSLError)):
            await asyncio.wait_for(plane.connect(), 0.2)
        go_on.set()
        answered = await busy.answer()
        assert (answered.body, answered.header("connection")) == (b"ok", "close")
        while not draining.done():
            await plane.advance(0.25)
            await asyncio.sleep(0.001)


async def test_an_engine_that_raises_is_a_denial(tmp_path: Path) -> None:
    class Broken(FakeEngine):
        async def decide(self, query: Query) -> object:  # type: ignore[override]
            raise RuntimeError("a defect")

    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.publish(engine=Broken(), revision=2)
        client = await plane.connect()
        assert (await client.get()).status == 500
    assert upstream.dials == 0


async def test_a_client_of_another_trust_domain_is_told_so(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        pair = plane.authority.client("spiffe://other.example/node/edge-1")
        client = await plane.connect(pair)
        assert (await client.answer()).reason == Reason.CLIENT_CERTIFICATE_INVALID.code


async def test_a_new_context_is_in_force_with_the_next_connection(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        pair = plane.pair()
        assert (await (await plane.connect(pair)).get()).status == 200
        plane.context = client_context(plane.authority.pem)  # no server's context: every handshake fails
        with pytest.raises((OSError, ssl.SSLError)):
            await plane.connect(pair)


async def test_an_exchange_that_is_over_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """Rings of objects wait for the collector, which stops every connection, a cut among them, while it looks."""
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert (await client.get()).status == 200
            left = [each for each in gc.get_objects() if isinstance(each, HttpExchange | Exchange)]
        finally:
            gc.enable()
    assert left == []

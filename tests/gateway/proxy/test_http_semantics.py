"""HTTP's finer points on real sockets: who waits for whom, what ends what, and what passes."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from foundation.reasons import Reason
from tests.fakes.trust import ALLOW, DENY
from tests.support.gateway import RawUpstream, gateway_to, request_bytes, saying

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EXPECTING = ("Expect: 100-continue", "Content-Length: 3")


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


# --- 100-continue (RFC 9110 §10.1.1) ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [b"417 Expectation Failed", b"401 Unauthorized", b"200 OK"])
async def test_a_final_answer_instead_of_100_ends_the_request_without_its_body(tmp_path: Path, status: bytes) -> None:
    behind = bytearray()

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno")
        behind.extend(await reader.read())

    async with gateway_to(RawUpstream(refusing), tmp_path) as plane:
        client = await plane.connect()
        answered = await client.ask(request_bytes("POST", "/x", *EXPECTING))
        assert (answered.status, answered.body) == (int(status[:3]), b"no")
        assert answered.header("connection") == "close"  # whether the body still comes, nobody can tell
        client.send(b"abc")
        await plane.advance(plane.settings.linger_timeout + 0.5)
        assert await client.ended() == b""
    assert behind == b""


async def test_a_client_that_does_not_wait_for_100_is_served(tmp_path: Path) -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            body = await reader.readexactly(3)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)

    async with gateway_to(RawUpstream(careful), tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):  # a 100 that comes when the body is out already tells nobody anything
            client.send(request_bytes("POST", "/x", *EXPECTING) + b"abc")
            assert (await client.answer()).body == b"abc"


async def test_a_body_that_never_follows_its_100_has_a_bounded_time(tmp_path: Path) -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.read()

    async with gateway_to(RawUpstream(careful), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", *EXPECTING))
        assert (await client.head())[0] == 100
        await plane.advance(plane.settings.body_timeout + 1)
        assert (await client.answer()).reason == Reason.REQUEST_TIMEOUT.code


async def test_a_100_that_was_not_asked_for_is_not_told(tmp_path: Path) -> None:
    upstream = RawUpstream(saying(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK))
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):
            client.send(request_bytes("GET", "/x"))
            assert (await client.head())[0] == 103
            assert (await client.answer()).status == 200


# --- answers without a body -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "answer", "declared"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "1000000"),
        ("HEAD", b"HTTP/1.1 404 Not Found\r\n\r\n", ""),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", ""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", ""),
    ],
)
async def test_what_has_no_body_says_no_more_than_the_upstream(
    tmp_path: Path, method: str, answer: bytes, declared: str
) -> None:
    async with gateway_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):
            answered = await client.ask(request_bytes(method, "/x"), method=method)
            assert (answered.header("content-length"), answered.header("transfer-encoding")) == (declared, "")


async def test_a_body_behind_what_has_none_is_not_the_next_answer(tmp_path: Path) -> None:
    upstream = RawUpstream(saying(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        assert [(await client.ask(request_bytes("DELETE", "/x"))).status for _ in range(2)] == [204, 204]
    assert upstream.dials == 2


# --- ends ---------------------------------------------------------------------------------------------------


async def test_a_client_that_says_goodbye_has_gone_too(tmp_path: Path) -> None:
    """TLS lets one side end alone; asyncio's and uvloop's do not, so a client's end is its connection's."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asked.set()
        await reader.read()
        gone.set()

    async with gateway_to(RawUpstream(waiting), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        await asked.wait()
        client.writer.close()
        async with asyncio.timeout(10):
            await gone.wait()
        await plane.until(lambda: plane.registry.open_count == 0)


async def test_an_upstream_that_resets_in_its_answer_resets_the_client(tmp_path: Path) -> None:
    async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await told.wait()
        plain: socket.socket = writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    told = asyncio.Event()
    async with gateway_to(RawUpstream(resetting), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        assert (await client.head())[0] == 200
        told.set()
        assert await client.ended() == b"half"
        await plane.until(lambda: plane.registry.open_count == 0)
        assert plane.metrics.answers == [("api", Reason.UPSTREAM_UNREACHABLE, 200)]


async def test_an_upstream_that_resets_under_an_upload_is_a_bad_gateway(tmp_path: Path) -> None:
    async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.transport.abort()

    async with gateway_to(RawUpstream(resetting), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", f"Content-Length: {1 << 20}") + bytes(1000))
        assert (await client.answer()).reason == Reason.UPSTREAM_UNREACHABLE.code


@pytest.mark.parametrize("line", ["GET /x HTTP/1.0", "GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive"])
async def test_clients_of_http_1_0_are_refused(tmp_path: Path, line: str) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        answered = await client.ask(line.encode() + b"\r\n\r\n")
        assert (answered.reason, answered.header("connection")) == (Reason.REQUEST_MALFORMED.code, "close")


# --- upgrades (RFC 9110 §7.8) ------------------------------------------------------------------------------


def switching(protocol: bytes) -> RawUpstream:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\nhello" % protocol)
        while data := await reader.read(65536):
            writer.write(data.upper())
            if data == b"bye":
                return

    upstream = RawUpstream(switch)
    return upstream


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_spdy_is_joined_as_kubernetes_exec_opens_it(tmp_path: Path, method: str) -> None:
    asks = ("Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io")
    lines = asks if method == "GET" else (*asks, "Content-Length: 0")
    upstream = switching(b"SPDY/3.1")
    async with gateway_to(upstream, tmp_path, upgrades=("spdy/3.1",)) as plane:
        plane.engine.answer = lambda query: ALLOW if query.request.action == "create" else DENY
        client = await plane.connect()
        client.send(request_bytes(method, "/exec?command=sh", *lines))
        status, headers = await client.head()
        assert (status, dict(headers)["upgrade"]) == (101, "spdy/3.1")
        assert await client.reader.readexactly(5) == b"hello"
        client.send(b"\x80\x03\x00\x01")
        assert await client.reader.readexactly(4) == b"\x80\x03\x00\x01"
        client.send(b"bye")
        assert await client.ended() == b"BYE"  # an upstream that ends: all that it sent arrives, then the end
        await plane.until(lambda: plane.registry.open_count == 0)
    assert b"connection: upgrade\r\nupgrade: spdy/3.1\r\n" in upstream.seen[0]


# --- bodies of any size ----------------------------------------------------------------------------------------

BIG = 512 << 20
BLOCK = bytes(1 << 16)


def resident() -> int:
    """Bytes of this process that are in memory (proc(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_bodies_of_any_size_pass_in_bounded_memory(tmp_path: Path) -> None:
    """Client, gateway and upstream are all in this process, and none of them keeps what passes."""

    async def swallow_and_flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        for _ in range(BIG // len(BLOCK)):
            await reader.readexactly(len(BLOCK))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
        for _ in range(BIG // len(BLOCK)):
            writer.write(BLOCK)
            await writer.drain()

    async with gateway_to(RawUpstream(swallow_and_flood), tmp_path) as plane:
        client = await plane.connect()
        before = most = resident()
        client.send(request_bytes("POST", "/x", f"Content-Length: {BIG}"))
        for _ in range(BIG // len(BLOCK)):
            client.send(BLOCK)
            await client.writer.drain()
            most = max(most, resident())
        assert (await client.head())[0] == 200
        for _ in range(BIG // len(BLOCK)):
            await client.reader.readexactly(len(BLOCK))
            most = max(most, resident())
        assert plane.metrics.answers == [("api", Reason.GRANTED, 200)]
    assert most - before < BIG // 16

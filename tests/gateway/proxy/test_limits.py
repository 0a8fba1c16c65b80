"""Each limit of the listener on real sockets: what it refuses, with which reason, and that the next one is served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from foundation.reasons import Reason
from gateway.proxy.services import GatewayListenerSettings
from tests.support.gateway import RawUpstream, gateway_to, request_bytes, saying

LINES = [f"X-{number}: {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("settings", "raw", "reason", "keeps"),
    [
        ({"fields": 20}, request_bytes("GET", "/x", *LINES), Reason.HEADERS_TOO_LARGE, False),
        ({"head_bytes": 1 << 10}, request_bytes("GET", "/x", "A: " + "a" * 1024), Reason.HEADERS_TOO_LARGE, False),
        ({"target_bytes": 100}, request_bytes("GET", "/" + "a" * 200), Reason.URI_TOO_LONG, False),
        ({"body_bytes": 9}, request_bytes("PUT", "/x", body=b"0123456789"), Reason.BODY_TOO_LARGE, True),
        (
            {"body_bytes": 9},
            request_bytes("PUT", "/x", "Transfer-Encoding: chunked") + b"a\r\n0123456789\r\n0\r\n\r\n",
            Reason.BODY_TOO_LARGE,
            False,
        ),
    ],
)
async def test_what_is_too_large_is_refused_and_recorded(
    tmp_path: Path, settings: dict[str, int], raw: bytes, reason: Reason, keeps: bool
) -> None:
    async with gateway_to(RawUpstream(saying(b"")), tmp_path, GatewayListenerSettings(**settings)) as plane:
        client = await plane.connect()
        answered = await client.ask(raw)
        assert (answered.status, answered.reason) == (reason.status, reason.code)
        assert (answered.header("connection") == "") is keeps
        assert len(plane.recorded.entries) == 1
        assert [each[1] for each in plane.metrics.answers] == [reason]


async def test_the_first_byte_has_a_bounded_time(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(first_byte_timeout=5.0, idle_timeout=60.0)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        silent, used = await plane.connect(), await plane.connect()
        assert (await used.get()).status == 200
        await plane.advance(6)
        assert await silent.ended() == b""
        assert (await used.get()).status == 200


async def test_a_whole_request_has_a_bounded_time_however_steadily_it_trickles(tmp_path: Path) -> None:
    swallowed = 0

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal swallowed
        await reader.readuntil(b"\r\n\r\n")
        while data := await reader.read(1 << 16):
            swallowed += len(data)

    settings = GatewayListenerSettings(body_timeout=10.0, request_timeout=30.0)
    async with gateway_to(RawUpstream(swallow), tmp_path, settings) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", "Content-Length: 1000"))
        for sent in range(1, 9):
            client.send(b"x")
            await plane.until(lambda sent=sent: swallowed >= sent or plane.registry.open_count == 0)
            await plane.advance(4)
        assert (await client.answer()).reason == Reason.REQUEST_TIMEOUT.code
        assert plane.metrics.answers == [("api", Reason.REQUEST_TIMEOUT, 408)]


async def test_a_stream_is_no_request_that_takes_too_long(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(request_timeout=30.0)
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
    async with gateway_to(RawUpstream(saying(answer)), tmp_path, settings) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/watch"))
        assert (await client.head())[0] == 200
        await plane.advance(300)
        assert plane.registry.open_count == 1


async def test_handshakes_of_one_source_are_bounded(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(source_handshakes=1, source_burst=3)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        pair = plane.pair()
        kept = [await plane.connect(pair) for _ in range(3)]
        reader, _ = await asyncio.open_connection(*plane.address)
        assert await reader.read() == b""
        assert plane.metrics.refused == [Reason.SOURCE_RATE_LIMITED]
        assert (await kept[0].get()).status == 200  # what is open stays
        await plane.advance(1)
        assert (await (await plane.connect(pair)).get()).status == 200


def big_answers() -> RawUpstream:
    return RawUpstream(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 26) + bytes(1 << 26)))


async def test_a_connection_that_holds_too_much_ends(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(connection_memory=128 << 10)
    async with gateway_to(big_answers(), tmp_path, settings) as plane:
        client, other = await plane.connect(), await plane.connect()
        client.send(request_bytes("GET", "/x"))
        await client.head()
        client.writer.transport.pause_reading()
        await plane.until(lambda: max(each.buffered for each in plane.listener.connections) > 128 << 10)
        await plane.advance(1)
        assert plane.metrics.refused == [Reason.CONNECTION_MEMORY]
        await plane.until(lambda: plane.listener.open_count == 1 and plane.registry.open_count == 0)
        other.send(request_bytes("GET", "/x"))
        assert (await other.head())[0] == 200


async def test_together_connections_hold_a_bounded_amount(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(memory=600 << 10)
    async with gateway_to(big_answers(), tmp_path, settings) as plane:
        clients = [await plane.connect() for _ in range(6)]
        for client in clients:
            client.send(request_bytes("GET", "/x"))
            await client.head()
            client.writer.transport.pause_reading()
        await plane.until(lambda: sum(each.buffered for each in plane.listener.connections) > 600 << 10)
        await plane.advance(1)
        await plane.until(lambda: sum(each.buffered for each in plane.listener.connections) <= 600 << 10)
        ended = len(plane.metrics.refused)
        assert 0 < ended < 6
        await plane.until(lambda: plane.listener.open_count == 6 - ended)


async def deaf_and_loud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads a head, then no more, and answers without end."""
    await reader.readuntil(b"\r\n\r\n")
    cast(asyncio.ReadTransport, writer.transport).pause_reading()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
    block = bytes(1 << 20)
    while True:
        writer.write(block)
        await writer.drain()


async def test_the_worst_of_both_sides_stays_within_the_bound_of_one_connection(tmp_path: Path) -> None:
    """Neither side reads and both write: what is held is what docs/operations.md says, and nobody is cut for it."""
    async with gateway_to(RawUpstream(deaf_and_loud), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("POST", "/x", f"Content-Length: {1 << 35}"))
        await client.head()
        client.writer.transport.pause_reading()
        await client.send_until_full(bytes(1 << 20), 64 << 20)
        (connection,) = plane.listener.connections
        held, before = connection.buffered, -1
        while held != before:
            before = held
            await asyncio.sleep(0.1)  # until nothing moves on either side
            held = max(held, connection.buffered)
        assert 256 << 10 < held < 1434 << 10
        await plane.advance(2)
        assert plane.listener.open_count == 1

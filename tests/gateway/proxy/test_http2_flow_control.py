"""Windows of HTTP/2 at work: what holds back whom, and what a stream may hold meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from h2.errors import ErrorCodes

from foundation.reasons import Reason
from gateway.proxy.http2_connection import Http2Connection
from policies.model import Query
from tests.fakes.trust import ALLOW, FakeEngine
from tests.support.gateway import RawUpstream, saying
from tests.support.http2 import OK, Echo, connect, fields_of, head_of, http2_to


class Flood(RawUpstream):
    """Writes a gigabyte to who asks for `/flood`, as far as it is taken."""

    def __init__(self) -> None:
        super().__init__(self.flood)
        self.written = 0

    async def flood(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"/flood" not in await self.request(reader):
            writer.write(OK)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        while self.written < 1 << 30:
            writer.write(bytes(1 << 16))
            await writer.drain()
            self.written += 1 << 16


async def test_a_window_that_stays_shut_holds_back_the_upstream_and_loses_the_stream(tmp_path: Path) -> None:
    upstream = Flood()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        client.acknowledges = False
        client.h2.increment_flow_control_window(1 << 20)
        number = client.open(fields_of("GET", "/flood"))
        await client.until(lambda: len(client.streams[number].body) == 65_535)
        before = -1
        while before != upstream.written:  # until the kernel's buffers are full too
            before = upstream.written
            await asyncio.sleep(0.2)
        assert upstream.written < 64 << 20
        (connection,) = plane.listener.connections
        assert isinstance(connection, Http2Connection)
        assert len(connection._streams[number]._pending) < 1 << 20
        assert (await client.get()).body == b"ok"  # a neighbour has a window of its own
        await plane.advance(plane.settings.body_timeout + 1)
        told = await client.answer(number)
        assert (told.ended, told.reset) == (False, ErrorCodes.ENHANCE_YOUR_CALM)
        assert plane.metrics.answers[-1][1] is Reason.REQUEST_TIMEOUT
        assert (await client.get()).body == b"ok"


async def test_each_stream_may_hold_what_a_connection_of_http_1_may(tmp_path: Path) -> None:
    async with http2_to(Flood(), tmp_path) as plane:
        client = await connect(plane)
        client.acknowledges = False
        client.h2.increment_flow_control_window(4 << 20)
        numbers = [client.open(fields_of("GET", "/flood")) for _ in range(12)]
        await client.until(lambda: all(len(client.streams[number].body) == 65_535 for number in numbers))
        (connection,) = plane.listener.connections
        await plane.until(lambda: connection.buffered > 12 * plane.services.http2.buffer)
        await plane.advance(3)
        assert (plane.listener.open_count, connection.under_way) == (1, 12)
        assert plane.metrics.refused == []


async def test_a_window_opened_by_drops_is_shut(tmp_path: Path) -> None:
    upstream = Flood()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        client.acknowledges = False
        client.h2.increment_flow_control_window(1 << 20)
        number = client.open(fields_of("GET", "/flood"))
        told = client.streams[number]
        await client.until(lambda: len(told.body) == 65_535)
        for drop in range(1, 4):
            await plane.advance(plane.settings.body_timeout / 3)
            if not told.over:
                client.h2.increment_flow_control_window(10, number)
                client.flush()
                await client.until(lambda wanted=drop: told.over or len(told.body) >= 65_535 + 10 * wanted)  # type: ignore[misc]
        await plane.advance(1)
        assert (await client.answer(number)).reset == ErrorCodes.ENHANCE_YOUR_CALM


async def test_a_large_answer_goes_on_as_the_client_reads(tmp_path: Path) -> None:
    body = bytes(range(256)) * 6_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with http2_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await connect(plane)
        numbers = [client.open(fields_of("GET", "/x")) for _ in range(4)]
        for number in numbers:
            assert (await client.answer(number)).body == body


async def test_a_slow_upstream_holds_back_its_stream_alone(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/deaf" not in await head_of(reader):
            writer.write(OK)
            return
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    async with http2_to(RawUpstream(deaf), tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/deaf"), ended=False)
        assert await client.upload(number, bytes(64 << 20)) < 16 << 20
        assert (await client.get()).body == b"ok"
        await plane.advance(plane.settings.body_timeout + 1)
        told = client.streams[number]
        await client.until(lambda: told.over)
        assert (told.status, told.reason) == (504, Reason.UPSTREAM_TIMEOUT.code)


async def test_a_body_is_kept_within_its_window_until_it_is_decided(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    class Slow(FakeEngine):
        async def decide(self, query: Query) -> object:  # type: ignore[override]
            await go_on.wait()
            return ALLOW

    async with http2_to(Echo(), tmp_path) as plane:
        plane.publish(engine=Slow(cached=False), revision=2)
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x"), ended=False)
        body = bytes(1 << 20)
        assert await client.upload(number, body) == 65_535 + 1  # what `window` says
        go_on.set()
        rest = client.upload(number, body[65_536:])
        assert await rest == len(body) - 65_536
        assert (await client.answer(number)).body == body

"""Upstreams that are down, silent, late or wrong: what the client is told, and what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.reasons import Reason
from tests.support.gateway import DataPlane, RawUpstream, gateway_to, request_bytes, route, saying


async def test_an_upstream_that_is_down_is_a_bad_gateway(tmp_path: Path) -> None:
    async with RawUpstream().running() as address:
        pass
    plane = DataPlane(tmp_path, (route(address),))
    async with plane.running():
        client = await plane.connect()
        answered = await client.get()
        assert (answered.status, answered.reason) == (502, Reason.UPSTREAM_UNREACHABLE.code)
        assert str(address.port) not in answered.body.decode()


async def test_the_next_address_is_tried_when_one_is_down(tmp_path: Path) -> None:
    async with RawUpstream().running() as down:
        pass
    async with RawUpstream().running() as up:
        plane = DataPlane(tmp_path, (route(down, "api", up),))
        async with plane.running():
            for name in ("edge-1", "edge-2", "edge-3", "edge-4"):
                plane.know(name)
                assert (await (await plane.connect(plane.pair(name))).get()).status == 200


async def pausing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each byte that is sent behind the head, and begins with one."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await reader.read()


@pytest.mark.parametrize(("bound", "seconds"), [("idle_timeout", 5.0), ("timeout", 20.0)])
async def test_a_route_may_bound_pauses_and_the_whole(tmp_path: Path, bound: str, seconds: float) -> None:
    async with gateway_to(RawUpstream(pausing), tmp_path, **{bound: seconds}) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        assert (await client.head())[0] == 200
        assert await anext(client.chunks()) == b"a"
        await plane.advance(seconds - 0.5)
        assert plane.registry.open_count == 1
        await plane.advance(1)
        await client.ended()
        assert plane.registry.open_count == 0
        assert plane.metrics.answers[-1][1] is Reason.UPSTREAM_TIMEOUT
        assert plane.upstreams.overview()[0]["addresses"][0]["state"] == "in_service"


async def test_without_such_bounds_a_stream_stays_open(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(pausing), tmp_path) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        assert (await client.head())[0] == 200
        await plane.advance(200)
        assert plane.registry.open_count == 1


async def test_an_upstream_that_is_silent_times_out(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(saying(b"")), tmp_path, response_timeout=5.0) as plane:
        client = await plane.connect()
        client.send(request_bytes("GET", "/x"))
        await plane.until(lambda: plane.registry.open_count == 1 and bool(plane.recorded.entries))
        await plane.until(
            lambda: any(each._exchange.due < 1e9 for each in plane.listener.connections if each._exchange)
        )
        await plane.advance(6)
        answered = await client.answer()
        assert (answered.status, answered.reason) == (504, Reason.UPSTREAM_TIMEOUT.code)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000,
    ],
)
async def test_an_answer_that_is_none_is_a_bad_gateway(tmp_path: Path, answer: bytes) -> None:
    async with gateway_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await plane.connect()
        answered = await client.get()
        assert (answered.status, answered.reason) == (502, Reason.UPSTREAM_INVALID.code)


async def test_a_connection_that_says_more_than_its_answer_is_not_used_again(tmp_path: Path) -> None:
    upstream = RawUpstream(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n"))
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        assert [(await client.get()).body for _ in range(2)] == [b"ok", b"ok"]
    assert upstream.dials == 2


@asynccontextmanager
async def gateway_to_one_that_leaves(tmp_path: Path) -> AsyncIterator[tuple[DataPlane, RawUpstream]]:
    """The upstream answers one request a connection, and closes when the second one comes."""

    async def leaving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await upstream.request(reader)

    upstream = RawUpstream(leaving)
    async with gateway_to(upstream, tmp_path) as plane:
        yield plane, upstream


async def test_a_read_is_sent_again_when_an_idle_connection_had_died(tmp_path: Path) -> None:
    async with gateway_to_one_that_leaves(tmp_path) as (plane, upstream):
        client = await plane.connect()
        assert [(await client.get()).status for _ in range(3)] == [200] * 3
        assert upstream.dials == 3


async def test_a_write_is_never_sent_again(tmp_path: Path) -> None:
    async with gateway_to_one_that_leaves(tmp_path) as (plane, upstream):
        client = await plane.connect()
        assert (await client.get()).status == 200
        assert (await client.ask(request_bytes("POST", "/x"))).reason == Reason.UPSTREAM_UNREACHABLE.code
        assert upstream.dials == 1

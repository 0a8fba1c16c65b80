"""Row "memory and time before authentication" (GHSA-q8g9-jc4c-jp6q, CVE-2026-62370, CVE-2026-7776): strangers that
hang, trickle or promise much hold a bounded number of places for a bounded time, and do not keep others out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from pathlib import Path

import pytest

from foundation.reasons import Reason
from gateway.proxy.services import GatewayListenerSettings
from tests.support.gateway import DataPlane, RawUpstream, gateway_to

Plain = tuple[asyncio.StreamReader, asyncio.StreamWriter]
CLIENT_HELLO_WITHOUT_END = b"\x16\x03\x01\xff\xff"  # a record of 65535 bytes, twice what TLS allows
HANDSHAKE_OF_16_MIB = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16380)


async def strangers(plane: DataPlane, count: int) -> list[Plain]:
    return [await asyncio.open_connection(*plane.address) for _ in range(count)]


def _came(plane: DataPlane) -> int:
    """Connections that were accepted: those whose handshake is under way, and those that gave way."""
    return len(plane.listener._handshakes) + len(plane.metrics.refused)


async def ended(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


def leave(connections: list[Plain]) -> None:
    for _, writer in connections:
        writer.transport.abort()


async def test_half_open_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(handshakes=50, connections=10_000)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        hanging = await strangers(plane, 500)
        assert (await (await plane.connect()).get()).status == 200
        assert len(plane.listener._handshakes) <= 50
        await plane.until(lambda: plane.metrics.refused.count(Reason.OVERLOADED) >= 450)
        leave(hanging)


async def test_ten_thousand_half_open_connections_keep_nobody_out(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(handshakes=256, source_burst=20_000)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        hanging: list[socket.socket] = []
        try:
            for number in range(200, 10_200, 200):
                hanging += [socket.create_connection(plane.address) for _ in range(200)]
                await plane.until(lambda number=number: _came(plane) == number)
            assert (await (await plane.connect()).get()).status == 200
            assert len(plane.listener._handshakes) <= 256
            assert plane.metrics.refused.count(Reason.OVERLOADED) >= 10_000 - 256
        finally:
            for each in hanging:
                each.close()


async def test_a_source_that_knocks_too_often_is_not_even_heard(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(source_handshakes=10, source_burst=100)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        hanging = await strangers(plane, 500)
        await plane.until(lambda: plane.metrics.refused.count(Reason.SOURCE_RATE_LIMITED) == 400)
        assert len(plane.listener._handshakes) <= 100
        await plane.advance(1)
        assert (await (await plane.connect()).get()).status == 200
        leave(hanging)


async def test_a_handshake_has_a_bounded_time(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(handshake_timeout=0.3)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        slow = await strangers(plane, 20)
        for reader, writer in slow:
            writer.write(b"\x16\x03\x01")
            async with asyncio.timeout(15):
                assert await ended(reader) == b""
        await plane.until(lambda: not plane.listener._handshakes)


PROMISES = [CLIENT_HELLO_WITHOUT_END, HANDSHAKE_OF_16_MIB, b"GET / HTTP/1.1\r\n\r\n", bytes(70_000)]


@pytest.mark.parametrize("raw", PROMISES)
async def test_what_promises_much_is_refused_at_once(tmp_path: Path, raw: bytes) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        connections = await strangers(plane, 5)
        for reader, writer in connections:
            writer.write(raw)
            async with asyncio.timeout(5):  # half of the handshake's own time-out
                assert b"HTTP" not in await ended(reader)
        await plane.until(lambda: not plane.listener._handshakes)


async def test_strangers_hold_little_memory(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(handshakes=200)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        tracemalloc.start()
        try:
            hanging = await strangers(plane, 200)
            for _, writer in hanging:
                writer.write(HANDSHAKE_OF_16_MIB[:16000])
            await plane.until(lambda: len(plane.listener._handshakes) > 0)
            assert tracemalloc.get_traced_memory()[0] < 200 * (600 << 10)
        finally:
            tracemalloc.stop()
        leave(hanging)


async def test_a_slow_head_has_a_bounded_time_and_size(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        await plane.until(lambda: plane.listener.open_count == 1)
        (connection,) = plane.listener.connections
        for sent in range(1, 8):  # a byte every two seconds: the time runs from the first one on
            client.send(b"G")
            await plane.until(lambda sent=sent: len(connection._held) >= sent or connection._lingering >= 0)
            await plane.advance(2)
        assert (await client.answer()).reason == Reason.REQUEST_TIMEOUT.code
        client = await plane.connect()
        client.send(b"GET / HTTP/1.1\r\nA: " + b"a" * 20_000)
        assert (await client.answer()).reason == Reason.HEADERS_TOO_LARGE.code


async def test_connections_in_all_are_bounded(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(connections=3)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        pair = plane.pair()
        kept = [await plane.connect(pair) for _ in range(3)]
        for client in kept:
            assert (await client.get()).status == 200
        reader, _ = await asyncio.open_connection(*plane.address)
        assert await reader.read() == b""
        assert (await kept[0].get()).status == 200

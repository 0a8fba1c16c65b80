"""Row "upgrade bypass" (CVE-2026-2833, CVE-2024-23326): nothing passes undecided beside an upgrade: bytes before the
101, an upstream that does not switch, or switches to something else, and a GET with a body are all refused."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from foundation.reasons import Reason
from gateway.proxy.upgrade import websocket_accept
from tests.support.gateway import DataPlane, RawClient, RawUpstream, gateway_to, request_bytes

KEY = base64.b64encode(b"0123456789abcdef").decode()
ASKS = ("Connection: upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")
SMUGGLED = request_bytes("GET", "/admin")


class SwitchingUpstream(RawUpstream):
    """Answers an upgrade with `answer` once `go_on` is set, and keeps what comes behind the request."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(self.switch)
        self.answer, self.behind = answer, b""
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def switch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.request(reader)
        await self.go_on.wait()
        writer.write(self.answer)
        self.behind = await reader.read()


def switching(upgrade: str = "websocket", key: str = KEY) -> bytes:
    lines = f"Connection: upgrade\r\nUpgrade: {upgrade}\r\nSec-WebSocket-Accept: "
    return b"HTTP/1.1 101 Switching Protocols\r\n" + lines.encode() + websocket_accept(key.encode()) + b"\r\n\r\n"


async def upgrade(plane: DataPlane, behind: bytes = b"") -> RawClient:
    client = await plane.connect()
    client.send(request_bytes("GET", "/ws", *ASKS) + behind)
    return client


async def test_bytes_with_the_request_are_refused(tmp_path: Path) -> None:
    upstream = SwitchingUpstream(switching())
    async with gateway_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await upgrade(plane, SMUGGLED)
        assert (await client.answer()).reason == Reason.UPGRADE_REFUSED.code
    assert upstream.dials == 0


async def test_bytes_before_the_101_are_refused(tmp_path: Path) -> None:
    upstream = SwitchingUpstream(switching())
    upstream.go_on.clear()
    async with gateway_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await upgrade(plane)
        await plane.until(lambda: bool(upstream.seen))
        client.send(SMUGGLED)
        assert (await client.answer()).reason == Reason.UPGRADE_REFUSED.code
        upstream.go_on.set()
    assert upstream.behind == b""
    assert len(plane.recorded.entries) == 1


async def test_an_upstream_that_does_not_switch_makes_no_tunnel(tmp_path: Path) -> None:
    upstream = SwitchingUpstream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with gateway_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await upgrade(plane)
        answered = await client.answer()
        assert (answered.status, answered.header("connection")) == (200, "close")
        client.send(SMUGGLED)
        assert await client.ended() == b""
    assert upstream.behind == b""
    assert len(plane.recorded.entries) == 1


@pytest.mark.parametrize(
    "answer",
    [
        switching("h2c"),
        switching(key="AAAAAAAAAAAAAAAAAAAAAA=="),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_an_upstream_that_switches_otherwise_is_refused(tmp_path: Path, answer: bytes) -> None:
    async with gateway_to(SwitchingUpstream(answer), tmp_path, upgrades=("websocket",)) as plane:
        client = await upgrade(plane)
        assert (await client.answer()).reason == Reason.UPSTREAM_INVALID.code


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("GET", (*ASKS, "Content-Length: 5")),
        ("GET", (*ASKS, "Transfer-Encoding: chunked")),
        ("POST", ASKS),
        ("GET", (*ASKS, "Upgrade: h2c")),
        ("GET", ("Connection: upgrade, http2-settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")),
        ("GET", ("Connection: upgrade", "Upgrade: h2c")),
        ("GET", ("Connection: upgrade",)),
        ("GET", ("Upgrade: websocket",)),
        ("GET", ("Connection: upgrade", "Upgrade: web\xe9socket")),
        ("GET", ("Connection: upgrade", "Upgrade: web socket")),
    ],
)
async def test_what_is_not_exactly_an_allowed_upgrade_is_not_sent_as_one(
    tmp_path: Path, method: str, lines: tuple[str, ...]
) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await plane.connect()
        answered = await client.ask(request_bytes(method, "/ws", *lines) + b"5\r\nhello\r\n0\r\n\r\n")
        assert answered.reason in {Reason.UPGRADE_REFUSED.code, Reason.REQUEST_AMBIGUOUS.code}
    assert upstream.dials == 0


async def test_a_route_that_names_no_upgrade_has_none(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await upgrade(plane)
        assert (await client.answer()).reason == Reason.UPGRADE_REFUSED.code
    assert upstream.dials == 0

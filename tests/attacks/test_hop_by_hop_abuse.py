"""Row "hop-by-hop abuse" (CVE-2024-45410, CVE-2026-55458): `Connection` cannot be used to remove what the upstream
decides by, in either direction, on an upgrade neither; what is hop-by-hop ends at the gateway."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from foundation.reasons import Reason
from tests.support.gateway import RawUpstream, gateway_to, request_bytes, saying

NAMED = [
    "X-Sallyport-Identity",
    "x-sallyport-decision",
    "X-Forwarded-Client-Cert",
    "Authorization",
    "Cookie",
    "Host",
    "Content-Length",
    "Content-Type",
    "traceparent",
    "If-Match",
    "Sec-WebSocket-Key",
    "bad name",
]
SPELLINGS = ["Connection: {}", "Connection: close, {}", "connection: keep-alive\r\nConnection: {}", "Connection: ,{},"]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_request_may_not_name_what_decides(tmp_path: Path, name: str, spelling: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        answered = await client.ask(request_bytes("GET", "/x", spelling.format(name)))
        assert answered.reason == Reason.REQUEST_AMBIGUOUS.code
    assert upstream.dials == 0


@pytest.mark.parametrize("name", ["X-Sallyport-Identity", "Set-Cookie", "Content-Length", "Content-Type"])
async def test_an_answer_may_not_either(tmp_path: Path, name: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\nConnection: {name}\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok".encode()
    async with gateway_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await plane.connect()
        assert (await client.get()).reason == Reason.UPSTREAM_INVALID.code


async def test_an_upgrade_may_not_in_either_direction(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(16)).decode()
    asks = ("Upgrade: websocket", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13")
    switch = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade, x-sallyport-identity\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: x\r\n\r\n"
    )
    async with gateway_to(RawUpstream(saying(switch)), tmp_path, upgrades=("websocket",)) as plane:
        client = await plane.connect()
        answered = await client.get("/ws", "Connection: upgrade, X-Sallyport-Identity", *asks)
        assert answered.reason == Reason.REQUEST_AMBIGUOUS.code
        client = await plane.connect()
        assert (await client.get("/ws", "Connection: upgrade", *asks)).reason == Reason.UPSTREAM_INVALID.code


async def test_hop_by_hop_fields_end_here(tmp_path: Path) -> None:
    lines = ("Keep-Alive: x=evil", "TE: evil", "Proxy-Authorization: evil", "Proxy-Connection: evil", "Trailer: evil")
    custom = ("Connection: keep-alive, X-Mine", "X-Mine: evil", "x-mine: evil")
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: x-mine\r\nX-Mine: evil\r\nKeep-Alive: evil\r\nProxy-Authenticate: evil\r\n"
        b"Content-Length: 2\r\n\r\nok"
    )
    upstream = RawUpstream()

    async def handle(reader: object, writer: object) -> None:
        await upstream.request(reader)  # type: ignore[arg-type]
        writer.write(answer)  # type: ignore[attr-defined]

    upstream.handler = handle
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        answered = await client.get("/x", *lines, *custom)
        assert answered.status == 200
        assert "evil" not in str(answered.headers)
    assert b"evil" not in upstream.seen[0]
    assert b"connection:" not in upstream.seen[0].lower()

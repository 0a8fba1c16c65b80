"""Real control planes and real clients: etcd with a watch, aiohttp with WebSockets and over TLS, nginx, curl."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, TCPConnector, WSMsgType, web

from foundation.identity import Revocation
from foundation.tls import client_context, server_context
from policies.upstreams import Address, UpstreamTls
from tests.fakes.trust import spiffe
from tests.support.certificates import SmallAuthority
from tests.support.gateway import HOST, DataPlane, request_bytes, route
from tests.support.upstreams import etcd, nginx


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@asynccontextmanager
async def plane_to(address: Address, folder: Path, **changes: Any) -> AsyncIterator[DataPlane]:
    plane = DataPlane(folder, (route(address, **changes),))
    async with plane.running():
        yield plane


async def test_etcd_is_written_read_and_watched_until_the_cut(tmp_path: Path) -> None:
    async with etcd(tmp_path) as seen, plane_to(seen.address, tmp_path) as plane:
        plane.know("edge-2")
        watcher, writer = await plane.connect(), await plane.connect(plane.pair("edge-2"))
        watch = json.dumps({"create_request": {"key": b64("k")}}).encode()
        watcher.send(request_bytes("POST", "/v3/watch", body=watch))
        assert (await watcher.head())[0] == 200
        events = watcher.chunks()
        assert json.loads(await anext(events))["result"]["created"] is True
        put = json.dumps({"key": b64("k"), "value": b64("v1")}).encode()
        assert (await writer.ask(request_bytes("POST", "/v3/kv/put", body=put))).status == 200
        (event,) = json.loads(await anext(events))["result"]["events"]
        assert event["kv"]["value"] == b64("v1")
        plane.store.apply(Revocation(1, spiffe("edge-1"), "", "key_compromise", 1.0))
        assert await watcher.ended() == b""
        read = json.dumps({"key": b64("k")}).encode()
        answered = await writer.ask(request_bytes("POST", "/v3/kv/range", body=read))
        assert json.loads(answered.body)["kvs"][0]["value"] == b64("v1")


async def sum_of(request: web.Request) -> web.Response:
    total = 0
    async for piece in request.content.iter_any():
        total += len(piece)
    return web.json_response({"bytes": total})


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
    return socket


@asynccontextmanager
async def application(context: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    app = web.Application()
    app.router.add_post("/sum", sum_of)
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield Address("127.0.0.1", int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()


def session_of(plane: DataPlane) -> ClientSession:
    context = client_context(plane.authority.pem, pair=plane.pair(), check_hostname=False)
    return ClientSession(
        f"https://127.0.0.1:{plane.address[1]}", connector=TCPConnector(ssl=context), headers={"Host": HOST}
    )


async def test_aiohttp_at_both_ends_uploads_and_speaks_websocket(tmp_path: Path) -> None:
    async with (
        application() as address,
        plane_to(address, tmp_path, upgrades=("websocket",)) as plane,
        session_of(plane) as session,
    ):

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield bytes(1 << 16)

        async with session.post("/sum", data=pieces()) as answered:
            assert await answered.json() == {"bytes": 4 << 20}
        async with session.post("/sum", data=bytes(3 << 20), expect100=True) as answered:
            assert await answered.json() == {"bytes": 3 << 20}
        async with session.ws_connect("/echo") as socket:
            for text in ("one", "two", "x" * 200_000):
                await socket.send_str(text)
                assert await socket.receive_str() == text.upper()


async def test_an_upstream_over_tls_is_verified(tmp_path: Path) -> None:
    (tmp_path / "upstream").mkdir()
    authority = SmallAuthority(tmp_path / "upstream", "upstream")
    ca_file = tmp_path / "upstream" / "ca.pem"
    ca_file.write_bytes(authority.pem)
    async with application(server_context(authority.server(), client_roots=None)) as at:
        tls = UpstreamTls(ca_file=str(ca_file))
        address = Address("localhost", at.port)
        async with plane_to(address, tmp_path, pool={"tls": tls}) as plane:
            answered = await (await plane.connect()).ask(request_bytes("POST", "/sum", body=b"abc"))
            assert json.loads(answered.body) == {"bytes": 3}
        for where, wrong in (
            ("127.0.0.1", tls),  # not in its certificate
            ("localhost", UpstreamTls()),  # the system's roots
            ("localhost", UpstreamTls(str(tmp_path / "missing.pem"))),
        ):
            async with plane_to(replace(address, host=where), tmp_path, pool={"tls": wrong}) as plane:
                answered = await (await plane.connect()).ask(request_bytes("POST", "/sum", body=b"abc"))
                assert (answered.status, answered.reason) == (502, "upstream_untrusted")
                assert str(tmp_path).encode() not in answered.body


async def test_curl_gets_through(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"")
    async with nginx(tmp_path) as seen, plane_to(seen.address, tmp_path) as plane:
        (tmp_path / "ca.pem").write_bytes(plane.authority.pem)
        pair = plane.pair()
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--fail", "--cacert", str(tmp_path / "ca.pem")),
            *("--cert", str(pair.certificate), "--key", str(pair.key)),
            *("--resolve", f"{HOST}:{plane.address[1]}:127.0.0.1"),
            *(f"https://{HOST}:{plane.address[1]}/one", f"https://{HOST}:{plane.address[1]}/two?x=1"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert (process.returncode, output) == (0, b"GET /one\nGET /two?x=1\n")

"""Row "smuggling" (CVE-2025-43859, CVE-2026-71554, CVE-2026-111750): whatever two parsers may frame in two ways is
refused, or arrives framed anew. Proven against nginx, aiohttp and etcd: an upstream sees no request that was not
decided."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.reasons import Reason
from tests.support.gateway import HOST, DataPlane, RawUpstream, gateway_to, request_bytes, route
from tests.support.upstreams import Seen, aiohttp_server, etcd, nginx

INNER = b"GET /smuggled HTTP/1.1\r\nHost: control.example\r\n\r\n"


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/x") -> bytes:
    head = [b"POST " + target + b" HTTP/1.1", b"Host: " + HOST.encode(), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CL, TE = b"Content-Length: %d", b"Transfer-Encoding: chunked"
REFUSED = {
    "CL.TE": post(CL % (5 + len(INNER)), TE, body=b"0\r\n\r\n" + INNER),
    "TE.CL": post(TE, b"Content-Length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)),
    "TE.TE": post(TE, b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + INNER),
    "TE twice": post(TE, TE, body=b"0\r\n\r\n" + INNER),
    "TE list": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + INNER),
    "TE gzip": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n" + INNER),
    "TE identity": post(b"Transfer-Encoding: identity", CL % len(INNER), body=INNER),
    "TE x": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + INNER),
    "TE tab": post(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n" + INNER),
    "TE space colon": post(b"Transfer-Encoding : chunked", CL % len(INNER), body=INNER),
    "TE folded": post(b"Transfer-Encoding:\r\n chunked", CL % len(INNER), body=INNER),
    "TE quoted": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n" + INNER),
    "CL twice": post(CL % 0, CL % len(INNER), body=INNER),
    "CL twice equal": post(CL % len(INNER), CL % len(INNER), body=INNER),
    "CL list": post(b"Content-Length: 0, %d" % len(INNER), body=INNER),
    "CL plus": post(b"Content-Length: +%d" % len(INNER), body=INNER),
    "CL minus": post(b"Content-Length: -1", body=INNER),
    "CL hex": post(b"Content-Length: 0x10", body=INNER),
    "CL zeros": post(b"Content-Length: 0%d" % len(INNER), body=INNER),
    "CL underscore": post(b"Content-Length: 1_0", body=INNER),
    "CL empty": post(b"Content-Length:", body=INNER),
    "CL huge": post(b"Content-Length: 99999999999999999999", body=INNER),
    "CL space colon": post(b"Content-Length : %d" % len(INNER), body=INNER),
    "CL NUL": post(b"Content-Length: 0\x00", body=INNER),
    "Host twice": post(b"Host: other.example"),
    "Host missing": b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "folded": post(b"A: b\r\n c: d"),
    "folded tab": post(b"A: b\r\n\tTransfer-Encoding: chunked", body=INNER),
    "first line folded": b"GET /x HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n",
    "bare LF": b"GET /x HTTP/1.1\nHost: control.example\r\n\r\n" + INNER,
    "bare LF in head": b"GET /x HTTP/1.1\r\nHost: control.example\nContent-Length: 5\r\n\r\n" + INNER,
    "bare CR": b"GET /x HTTP/1.1\r\nHost: control.example\rA: b\r\n\r\n" + INNER,
    "CR CR LF": b"GET /x HTTP/1.1\r\nHost: control.example\r\r\n\r\n" + INNER,
    "NUL": post(b"A: b\x00c"),
    "empty name": post(b": b"),
    "no colon": post(b"Transfer-Encoding"),
    "name with space": post(b"Transfer Encoding: chunked"),
    "obs-text name": post(b"Transf\xe9r: x"),
    "GET with a body": b"GET /x HTTP/1.1\r\nHost: a\r\n" + (CL % len(INNER)) + b"\r\n\r\n" + INNER,
    "GET in chunks": b"GET /x HTTP/1.1\r\nHost: a\r\n" + TE + b"\r\n\r\n0\r\n\r\n" + INNER,
    "HTTP/1.0": b"POST /x HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "version 1.10": b"GET /x HTTP/1.10\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab in line": b"GET\t/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "leading CRLF": b"\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "chunk extension": post(TE, body=b"0;a=b\r\n\r\n" + INNER),
    "chunk extension with LF": post(TE, body=b"2;\nxx\r\n4c\r\n0\r\n\r\n" + INNER),
    "chunk 0x": post(TE, body=b"0x0\r\n\r\n" + INNER),
    "chunk plus": post(TE, body=b"+0\r\n\r\n" + INNER),
    "chunk space": post(TE, body=b"0 \r\n\r\n" + INNER),
    "chunk LF": post(TE, body=b"0\n\n" + INNER),
    "chunk long": post(TE, body=b"2\r\nabXX" + INNER),
    "chunk overflow": post(TE, body=b"10000000000000000\r\n" + INNER),
    "trailer LF": post(TE, body=b"0\r\nA: b\n\r\n\r\n" + INNER),
}
REASONS = {Reason.REQUEST_AMBIGUOUS.code, Reason.REQUEST_MALFORMED.code}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_frames_in_two_ways_is_refused_and_the_connections_last(tmp_path: Path, name: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        answered = await client.ask(REFUSED[name])
        assert answered.reason in REASONS
        await plane.advance(plane.settings.linger_timeout + 0.5)
        assert await client.ended() == b""
    assert not any(b"smuggled" in each for each in upstream.seen)


@asynccontextmanager
async def plane_to(seen: Seen, folder: Path) -> AsyncIterator[DataPlane]:
    plane = DataPlane(folder, (route(seen.address),))
    async with plane.running():
        yield plane


async def attack(plane: DataPlane) -> None:
    """Every payload, each on its own connection, then an innocent one that would get a smuggled answer."""
    innocent = await plane.connect()
    for name, raw in REFUSED.items():
        client = await plane.connect()
        client.send(raw)
        with contextlib.suppress(EOFError):
            assert (await client.answer()).status >= 400, name
        client.close()
        assert (await innocent.get("/innocent")).status in {200, 404}


def decided(plane: DataPlane) -> list[str]:
    """What was permitted; a body that breaks its framing later may keep its request from being seen whole."""
    return [f"{entry.method} {entry.target}" for entry in plane.recorded.entries if entry.allow]


async def test_nginx_sees_nothing_that_was_not_decided(tmp_path: Path) -> None:
    async with nginx(tmp_path) as seen, plane_to(seen, tmp_path) as plane:
        await attack(plane)
        assert seen.all().count("GET /innocent") == len(REFUSED)
        assert set(seen.all()) <= set(decided(plane))
        assert not any("smuggled" in each for each in seen.all())


async def test_aiohttp_sees_nothing_that_was_not_decided(tmp_path: Path) -> None:
    async with aiohttp_server() as seen, plane_to(seen, tmp_path) as plane:
        await attack(plane)
        assert seen.all().count("GET /innocent") == len(REFUSED)
        assert set(seen.all()) <= set(decided(plane))


async def test_etcd_keeps_nothing_that_was_smuggled(tmp_path: Path) -> None:
    async with etcd(tmp_path) as seen, plane_to(seen, tmp_path) as plane:
        document = json.dumps({"key": _b64("smuggled"), "value": _b64("x")}).encode()
        inner = post(CL % len(document), body=document, target=b"/v3/kv/put")
        for raw in REFUSED.values():
            client = await plane.connect()
            client.send(raw.replace(INNER, inner))
            with contextlib.suppress(EOFError):
                await client.answer()
            client.close()
        client = await plane.connect()
        assert await _count(client_key="smuggled", plane=plane) == 0
        put = json.dumps({"key": _b64("meant"), "value": _b64("x")}).encode()
        chunks = b"%x\r\n%b\r\n0\r\nA: b\r\n\r\n" % (len(put), put)
        assert (await client.ask(post(TE, body=chunks, target=b"/v3/kv/put"))).status == 200
        assert await _count(client_key="meant", plane=plane) == 1


@pytest.mark.parametrize("server", ["nginx", "aiohttp"])
async def test_what_is_accepted_is_framed_the_same_at_both_ends(tmp_path: Path, server: str) -> None:
    started = nginx(tmp_path) if server == "nginx" else aiohttp_server()
    async with started as seen, plane_to(seen, tmp_path) as plane:
        client = await plane.connect()
        chunked = b"5\r\nhello\r\n00000000a\r\n" + b"GET /a HTT" + b"\r\n0\r\nTrailer: x\r\n\r\n"
        client.send(post(TE, body=chunked, target=b"/1") + post(CL % len(INNER), body=INNER, target=b"/2"))
        client.send(post(target=b"/3") + request_bytes("GET", "/4", "Content-Length: 0"))
        answers = [await client.answer() for _ in range(4)]
        assert [each.status for each in answers] == [200] * 4
        assert seen.all() == ["POST /1", "POST /2", "POST /3", "GET /4"] == decided(plane)
        if server == "aiohttp":
            assert [each.body for each in answers[:2]] == [b"helloGET /a HTT", INNER]


async def _count(client_key: str, plane: DataPlane) -> int:
    client = await plane.connect()
    document = json.dumps({"key": _b64(client_key), "count_only": True}).encode()
    answered = await client.ask(post(CL % len(document), body=document, target=b"/v3/kv/range"))
    return int(json.loads(answered.body).get("count", 0))


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

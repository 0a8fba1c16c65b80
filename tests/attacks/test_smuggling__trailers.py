"""Row "smuggling", behind the body: an upstream that merges trailers into its headers finds there nothing that frames,
authenticates or identifies; and nobody gets trailers who did not say that they can be told from the next answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.gateway import RawUpstream, gateway_to, request_bytes, saying
from tests.support.http2 import connect, fields_of, head_of, http2_to

FORGED = [
    *("X-Sallyport-Identity", "X-Forwarded-For", "X-Real-IP", "Impersonate-User", "X_Remote_User", "Forwarded"),
    *("Authorization", "Cookie", "Proxy-Authorization", "Content-Length", "Transfer-Encoding", "Transfer_Encoding"),
    *("Host", "Content-Type", "Content.Encoding", "If-Match", "Range", "X-HTTP-Method-Override", "X-Original-URL"),
]
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: X-Hop\r\n\r\n2\r\nok\r\n0\r\n%b\r\n"
BEHIND = b"X-Sum: 1\r\nX-Hop: 1\r\nSet-Cookie: session=stolen\r\nContent-Length: 9\r\n"


class Merging(RawUpstream):
    """Takes what stands behind a body for headers, as some servers do. `merged` are their names."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.merged: set[bytes] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        while await reader.readline() != b"0\r\n":
            pass
        while (line := await reader.readline()) != b"\r\n":
            self.merged.add(line.partition(b":")[0].lower())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize("forged", FORGED)
async def test_no_trailer_becomes_what_decides(tmp_path: Path, forged: str) -> None:
    upstream = Merging()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        behind = f"0\r\n{forged}: 1\r\nX-Sum: 1\r\n\r\n".encode()
        client.send(request_bytes("POST", "/x", "Transfer-Encoding: chunked") + b"1\r\na\r\n" + behind)
        assert (await client.answer()).body == b"ok"
    assert upstream.merged == {b"x-sum"}


async def test_nor_by_http_2(tmp_path: Path) -> None:
    upstream = Merging()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x"), ended=False)
        forged = [(name.lower(), "1") for name in FORGED if name not in {"Transfer-Encoding"}]  # h2 would not send it
        client.h2.send_headers(number, [*forged, ("x-sum", "1")], end_stream=True)
        client.flush()
        assert (await client.answer(number)).body == b"ok"
    assert upstream.merged == {b"x-sum"}


async def test_an_upstream_sets_no_cookie_behind_its_answer(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(saying(ANSWER % BEHIND)), tmp_path) as plane:
        client = await plane.connect()
        assert (await client.get("/x", "TE: trailers")).body == b"ok"
        assert client.trailers == [b"X-Sum: 1"]


async def test_who_did_not_ask_finds_the_next_answer_where_it_belongs(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(saying(ANSWER % BEHIND)), tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):
            client.send(request_bytes("GET", "/x"))
            await client.head()
            assert await client.reader.readexactly(12) == b"2\r\nok\r\n0\r\n\r\n"

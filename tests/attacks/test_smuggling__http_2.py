"""Row "smuggling", by HTTP/2 in front of HTTP/1.1: nothing of a header list or of DATA becomes another line, another
field or another request, and a body ends where its frames end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from foundation.reasons import Reason
from tests.support.gateway import HOST, RawUpstream
from tests.support.http2 import Headers, connect, fields_of, http2_to

SMUGGLED = "GET /admin HTTP/1.1\r\nHost: control.example\r\n\r\n"


def instead(name: str, value: str) -> Headers:
    return [(each, value if each == name else before) for each, before in fields_of("POST", "/x")]


@pytest.mark.parametrize(
    "fields",
    [
        fields_of("POST", "/x", ("x-a", f"1\r\n\r\n{SMUGGLED}")),
        fields_of("POST", "/x", ("x-a", "1\r\ncontent-length: 0")),
        fields_of("POST", "/x", ("x-a", "1\nx-sallyport-identity: spiffe://fleet.example/operator/admin")),
        fields_of("POST", "/x", ("x-a", "1\r")),
        fields_of("POST", "/x", ("x-a: 1\r\nx-b", "1")),
        fields_of("POST", "/x", ("x-a: 1\r\nx-sallyport-identity", "spiffe://fleet.example/operator/admin")),
        fields_of("POST", "/x", ("content-length : 5\r\nx-b", "1")),
        fields_of("POST", "/x", ("x-a:b", "1")),
        instead(":path", "/x HTTP/1.1\r\nx-a: 1\r\nx-b:"),
        instead(":path", f"/x HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /admin"),
        instead(":authority", f"{HOST}\r\nx-a: 1"),
        instead(":scheme", "https://evil.example/?"),
        instead(":scheme", "http"),
        fields_of("POST", "/x", (":path", "/admin")),
        [("x-a", "1"), *fields_of("POST", "/x")],
        fields_of("POST", "/x", ("transfer-encoding", "chunked")),
        fields_of("POST", "/x", ("connection", "transfer-encoding"), ("transfer-encoding", "chunked")),
        fields_of("POST", "/x", ("connection", "x-sallyport-identity")),
        fields_of("POST", "/x", ("upgrade", "h2c")),
        fields_of("POST", "/x", ("te", "chunked")),
    ],
)
async def test_a_header_list_stays_one_request(tmp_path: Path, fields: Headers) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        told = await client.answer(client.open(fields))
        assert (told.status, told.reason) == (400, Reason.REQUEST_MALFORMED.code)
        assert [entry.allow for entry in plane.recorded.entries] == [False]
    assert upstream.dials == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (instead(":method", f"GET /admin HTTP/1.1\r\nHost: {HOST}\r\n\r\nPOST"), Reason.REQUEST_MALFORMED),
        (instead(":method", "get"), Reason.METHOD_UNSUPPORTED),
        (instead(":method", "PRI"), Reason.METHOD_UNSUPPORTED),
        (fields_of("POST", "/x", ("host", "other.example")), Reason.REQUEST_AMBIGUOUS),
        (fields_of("POST", "/x", ("Transfer-Encoding", "chunked")), Reason.REQUEST_MALFORMED),
    ],
)
async def test_what_only_looks_like_a_request_is_refused(tmp_path: Path, fields: Headers, reason: Reason) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        assert (await client.answer(client.open(fields))).reason == reason.code
    assert upstream.dials == 0


@pytest.mark.parametrize("declared", ["0", "5", str(len(SMUGGLED) + 5)])
async def test_a_body_ends_where_its_frames_end(tmp_path: Path, declared: str) -> None:
    """Content-Length that says otherwise ends the connection, and the upstream has no whole request of it."""
    whole: list[bytes] = []

    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            whole.append(head + await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with http2_to(RawUpstream(careful), tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x", ("content-length", declared)), ended=False)
        client.data(number, SMUGGLED.encode(), ended=True)
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.PROTOCOL_ERROR
        await plane.until(lambda: plane.registry.open_count == 0)
        assert [entry.target for entry in plane.recorded.entries] in ([], ["/x"])
    assert all(b"/admin" not in each for each in whole)


async def test_a_body_that_is_said_to_come_and_does_not_is_refused(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        told = await client.ask("POST", "/x", ("content-length", "5"))
        assert told.reason == Reason.REQUEST_AMBIGUOUS.code
    assert upstream.dials == 0


async def test_data_that_looks_like_a_request_or_a_chunk_is_payload(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    async def chunked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
            bodies.append(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with http2_to(RawUpstream(chunked), tmp_path) as plane:
        client = await connect(plane)
        for body in (b"0\r\n\r\n" + SMUGGLED.encode(), b"\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"):
            assert (await client.ask("POST", "/x", body=body)).status == 200
            assert bodies[-1] == body
        assert len(plane.recorded.entries) == 3

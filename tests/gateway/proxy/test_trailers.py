"""Trailers (RFC 9110 §6.5): what passes behind a body, in both directions and by both protocols."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.headers import MAX_TRAILER_BYTES, MAX_TRAILERS, Field, trailers
from gateway.proxy.http1 import ChunkedBody
from tests.support.gateway import RawUpstream, gateway_to, request_bytes, saying
from tests.support.http2 import connect, fields_of, head_of, http2_to

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = CHUNKED + b"2\r\nok\r\n0\r\nX-Sum:  1 \r\nSet-Cookie: a=b\r\n\r\n"
NEVER = [
    *("Content-Length", "Transfer-Encoding", "Host", "Expect", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade"),
    *("Authorization", "Proxy-Authorization", "WWW-Authenticate", "Cookie", "Set-Cookie", "X-API-Key", "X-Auth-Token"),
    *("Content-Encoding", "Content-Type", "Content-Range", "Content-Location", "Range", "If-Match", "If-None-Match"),
    *("Cache-Control", "Vary", "Age", "Location", "Date", "Via", "Accept", "Origin", "Access-Control-Allow-Origin"),
    *("X-Forwarded-For", "Forwarded", "X-Real-IP", "traceparent", "tracestate", "X-Sallyport-Identity", "Remote-User"),
    *(
        "X-Original-URL",
        "X-HTTP-Method-Override",
        "Impersonate-User",
        "Sec-WebSocket-Accept",
        "Strict-Transport-Security",
    ),
    *("Content_Length", "content.type", "Set_Cookie", "if_match", "X_Forwarded_For", "content_digest"),
]


@pytest.mark.parametrize("name", NEVER)
def test_what_decides_something_is_no_trailer(name: str) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert trailers([(spelling.encode(), b"1")], (), Reason.REQUEST_AMBIGUOUS) == []


@pytest.mark.parametrize(
    "name", ["X-Sum", "ETag", "Digest", "Repr-Digest", "Content-Digest", "Server-Timing", "grpc-status"]
)
def test_what_tells_of_the_body_passes_as_it_is(name: str) -> None:
    field = (name.encode(), b"a=1, b")
    assert trailers([field], (), Reason.REQUEST_AMBIGUOUS) == [field]


def test_what_connection_names_ends_here_behind_the_body_too() -> None:
    """RFC 9110 §7.6.1."""
    assert trailers([(b"X-Sum", b"1"), (b"X-Hop", b"2")], [b"x-hop"], Reason.UPSTREAM_INVALID) == [(b"X-Sum", b"1")]


@pytest.mark.parametrize(
    "fields",
    [
        [(b"x", b"1")] * (MAX_TRAILERS + 1),
        [(b"x", b"1" * MAX_TRAILER_BYTES)],
        [(b"x y", b"1")],
        [(b"", b"1")],
    ],
)
def test_too_many_or_what_is_no_field_is_refused(fields: list[Field]) -> None:
    for malformed in (Reason.REQUEST_AMBIGUOUS, Reason.UPSTREAM_INVALID):
        with pytest.raises(Fault) as caught:
            trailers(fields, (), malformed)
        assert caught.value.reason is malformed
        raw = b"0\r\n" + b"".join([b"%b: %b\r\n" % field for field in fields]) + b"\r\n"
        with pytest.raises(Fault) as caught:
            ChunkedBody(malformed).feed(raw)
        assert caught.value.reason is malformed


class Summing(RawUpstream):
    """Keeps each chunked request with its trailers, and answers with its own."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen = await head_of(reader)
            if b"chunked" in seen:
                while not seen.endswith(b"0\r\n"):
                    seen += await reader.readline()
                while not seen.endswith(b"\r\n\r\n"):
                    seen += await reader.readline()
            self.requests.append(seen)
            writer.write(ANSWER)


@pytest.mark.parametrize("asks", ["TE: trailers", "te: gzip;q=0.5, Trailers", "Connection: TE\r\nTE: trailers"])
async def test_they_pass_by_http_1_to_who_asks(tmp_path: Path, asks: str) -> None:
    upstream = Summing()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        for _ in range(2):  # the connections are whole behind them
            lines = ("Transfer-Encoding: chunked", "Trailer: X-Sum", asks)
            client.send(request_bytes("POST", "/x", *lines) + b"3\r\nabc\r\n0\r\nX-Sum: 7\r\nX-Real-IP: 1\r\n\r\n")
            assert (await client.answer()).body == b"ok"
            assert client.trailers == [b"X-Sum: 1"]
    for seen in upstream.requests:
        assert seen.endswith(b"connection: te\r\nte: trailers\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
        assert b"trailer:" not in seen.lower()


async def test_who_does_not_ask_gets_none_and_the_upstream_is_not_asked_for_any(tmp_path: Path) -> None:
    upstream = Summing()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        for line in ("Accept: trailers", "TE: gzip", "X-TE: trailers", "TE: trailersx"):
            assert (await client.get("/x", line)).body == b"ok"
            assert client.trailers == []
    assert not [seen for seen in upstream.requests if b"\r\nte:" in seen or b"\r\nconnection:" in seen]


async def test_what_the_answer_nominates_ends_here(tmp_path: Path) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Hop: 1\r\nX-Sum: 1\r\n\r\n"
    )
    async with gateway_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await plane.connect()
        assert (await client.get("/x", "TE: trailers")).status == 200
        assert client.trailers == [b"X-Sum: 1"]


async def test_an_answer_that_was_given_up_leaves_none_to_the_next(tmp_path: Path) -> None:
    """Trailers go with the end that they came with."""
    answers = iter([CHUNKED + b"0\r\nX-Sum: 1\r\n\r\n", CHUNKED + b"0\r\n\r\n"])

    async def one_by_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            writer.write(next(answers))

    async with gateway_to(RawUpstream(one_by_one), tmp_path) as plane:
        client = await plane.connect()
        seen = []
        for _ in range(2):
            await client.get("/x", "TE: trailers")
            seen.append(client.trailers)
    assert seen == [[b"X-Sum: 1"], []]


@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_they_pass_by_http_2(tmp_path: Path, body: bytes) -> None:
    upstream = Summing()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x", ("te", "trailers")), ended=False)
        if body:
            client.data(number, body)
        client.h2.send_headers(number, [("x-sum", "7"), ("x-real-ip", "1")], end_stream=True)
        client.flush()
        told = await client.answer(number)
        assert (told.status, told.body, told.trailers, told.ended) == (200, b"ok", [("x-sum", "1")], True)
        told = await client.get("/x")
        assert (told.body, told.trailers, told.ended) == (b"ok", [], True)
    assert upstream.requests[0].endswith(b"0\r\nx-sum: 7\r\n\r\n")
    assert upstream.requests[0].count(body) >= 1
    assert b"te: trailers" in upstream.requests[0]
    assert b"te: trailers" not in upstream.requests[1]


async def test_by_http_2_they_end_an_answer_without_a_body(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(saying(CHUNKED + b"0\r\nX-Sum: 1\r\n\r\n")), tmp_path) as plane:
        client = await connect(plane)
        told = await client.get("/x", ("te", "trailers"))
        assert (told.status, told.body, told.trailers, told.ended) == (200, b"", [("x-sum", "1")], True)


async def test_by_http_2_they_wait_for_the_body_before_them(tmp_path: Path) -> None:
    """The client's window is smaller than the answer: its end, and the trailers, come behind the last of it."""
    size = 200_000
    answer = CHUNKED + b"%x\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (size, b"x" * size)
    async with http2_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await connect(plane)
        told = await client.get("/x", ("te", "trailers"))
        assert (len(told.body), told.trailers) == (size, [("x-sum", "1")])


async def test_behind_a_body_of_a_declared_length_there_is_no_place_for_them(tmp_path: Path) -> None:
    upstream = Summing()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x", ("content-length", "0")), ended=False)
        client.h2.send_headers(number, [("x-sum", "7")], end_stream=True)
        client.flush()
        assert (await client.answer(number)).status == 200
    assert b"x-sum" not in upstream.requests[0]

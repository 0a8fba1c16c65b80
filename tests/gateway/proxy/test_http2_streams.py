"""Streams of HTTP/2 connections on real sockets: each an exchange of its own, in all its turns."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from foundation.reasons import Reason
from gateway.proxy.exchange import HttpExchange
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.http2_stream import Http2Stream
from gateway.proxy.upgrade import websocket_accept
from gateway.streams.registry import Exchange
from policies.model import Query
from tests.fakes.trust import ALLOW, DENY, FakeEngine
from tests.support.gateway import RawUpstream, saying
from tests.support.http2 import CHUNKED, OK, Echo, connect, fields_of, head_of, http2_to


class Gated(RawUpstream):
    """Holds `/slow` back until `go_on`; answers the rest at once. `cancelled` counts requests that were given up."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.go_on = asyncio.Event()
        self.waiting = self.cancelled = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if b"/slow" in await self.request(reader):
                self.waiting += 1
                wait, end = (asyncio.ensure_future(each) for each in (self.go_on.wait(), reader.read(1)))
                await asyncio.wait([wait, end], return_when=asyncio.FIRST_COMPLETED)
                wait.cancel()
                if end.done():
                    self.cancelled += 1
                    return
                end.cancel()
            writer.write(OK)


# --- requests and answers -----------------------------------------------------------------------------------


async def test_requests_share_a_connection_and_are_decided_each(tmp_path: Path) -> None:
    upstream = Gated()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        slow = client.open(fields_of("GET", "/slow"))
        await plane.until(lambda: upstream.waiting == 1)
        for number in range(3):
            told = await client.get(f"/{number}")
            assert (told.status, told.body) == (200, b"ok")
            assert told.header("x-sallyport-decision") == plane.recorded.entries[-1].id
        upstream.go_on.set()
        assert (await client.answer(slow)).body == b"ok"
        assert plane.registry.open_count == 0
    assert [entry.target for entry in plane.recorded.entries] == ["/slow", "/0", "/1", "/2"]
    assert b"x-sallyport-identity: spiffe://fleet.example/node/edge-1\r\n" in upstream.seen[0]
    assert b"via: 2.0 sallyport\r\n" in upstream.seen[0]


async def test_bodies_arrive_as_they_were_sent(tmp_path: Path) -> None:
    async with http2_to(Echo(), tmp_path) as plane:
        client = await connect(plane)
        big = bytes(range(256)) * 8192  # 32 windows
        assert (await client.ask("POST", "/x", body=big)).body == big
        assert (await client.ask("PUT", "/x", ("content-length", str(len(big))), body=big)).body == big
        assert (await client.ask("PUT", "/x", ("content-length", "0"))).body == b""
        numbers = [client.open(fields_of("POST", f"/{i}"), ended=False) for i in range(20)]
        for number in numbers:
            client.data(number, b"%d" % number, ended=True)
        assert [(await client.answer(number)).body for number in numbers] == [b"%d" % each for each in numbers]
        assert plane.registry.open_count == 0


async def test_both_sides_stream_at_once(tmp_path: Path) -> None:
    """As gRPC does: each piece is answered before the next one is sent."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(CHUNKED)
        while size := int(await reader.readline(), 16):
            piece = (await reader.readexactly(size + 2))[:-2]
            writer.write(b"%x\r\n%b\r\n" % (size, piece.upper()))
        await reader.readline()
        writer.write(b"0\r\n\r\n")

    async with http2_to(RawUpstream(talk), tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/talk", ("te", "trailers")), ended=False)
        told = client.streams[number]
        for count in range(1, 6):
            client.data(number, b"piece")
            await client.until(lambda wanted=count: told.body == b"PIECE" * wanted)  # type: ignore[misc]
        client.h2.send_headers(number, [("x-trailer", "1")], end_stream=True)
        client.flush()
        await client.answer(number)
        assert (told.ended, told.reset) == (True, None)


@pytest.mark.parametrize(
    ("method", "answer", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200, "9"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, "9"),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("POST", b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, "0"),
    ],
)
async def test_answers_without_a_body(tmp_path: Path, method: str, answer: bytes, status: int, length: str) -> None:
    upstream = RawUpstream(saying(answer))
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        for _ in range(2):
            told = await client.ask(method, "/x")
            assert (told.status, told.header("content-length"), told.body) == (status, length, b"")
    assert upstream.dials == 1


async def test_informational_answers_pass(tmp_path: Path) -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"expect: 100-continue\r\n" in await head_of(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(3)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)

    async with http2_to(RawUpstream(careful), tmp_path) as plane:
        client = await connect(plane)
        fields = fields_of("POST", "/x", ("expect", "100-continue"), ("content-length", "3"))
        number = client.open(fields, ended=False)
        await client.until(lambda: client.streams[number].informed == [100])
        client.data(number, b"abc", ended=True)
        told = await client.answer(number)
        assert (told.informed, told.body) == ([100, 103], b"abc")


async def test_an_early_answer_ends_the_upload_and_nothing_else(tmp_path: Path) -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")

    async with http2_to(RawUpstream(early), tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x"), ended=False)
        told = await client.answer(number)
        assert (told.status, told.body, told.ended, told.reset) == (413, b"no", True, None)
        assert (await client.get()).status == 413
        assert await client.upload(number, bytes(1 << 20)) < 1 << 20  # its window stays shut
        await plane.advance(plane.settings.linger_timeout + 0.5)
        await client.until(lambda: told.reset == ErrorCodes.NO_ERROR)
        assert (await client.get()).status == 413
        assert plane.registry.open_count == 0


async def test_a_request_that_the_client_takes_back_is_cancelled(tmp_path: Path) -> None:
    upstream = Gated()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        first, second = (client.open(fields_of("GET", "/slow")) for _ in range(2))
        await plane.until(lambda: upstream.waiting == 2)
        client.h2.reset_stream(first, ErrorCodes.CANCEL)
        client.flush()
        await plane.until(lambda: upstream.cancelled == 1 and plane.registry.open_count == 1)
        upstream.go_on.set()
        assert (await client.answer(second)).status == 200


async def test_a_client_that_goes_takes_its_upstreams_with_it(tmp_path: Path) -> None:
    upstream = Gated()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        for _ in range(3):
            client.open(fields_of("GET", "/slow"))
        await plane.until(lambda: upstream.waiting == 3)
        client.close()
        await plane.until(lambda: upstream.cancelled == 3 and plane.registry.open_count == 0)


async def test_half_an_answer_is_reset_and_its_neighbour_is_not(tmp_path: Path) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        if b"/whole" in head:
            writer.write(b"0\r\n\r\n")
            await reader.read()

    async with http2_to(RawUpstream(half), tmp_path) as plane:
        client = await connect(plane)
        told = await client.get("/half")
        assert (told.body, told.ended, told.reset) == (b"one", False, ErrorCodes.INTERNAL_ERROR)
        assert (await client.get("/whole")).ended


# --- refusals -----------------------------------------------------------------------------------------------


async def test_a_denial_says_why_and_costs_its_stream_alone(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        plane.engine.answer = lambda query: DENY
        client = await connect(plane)
        for body in (None, b"x" * 1000):
            told = await client.ask("POST", "/x", body=body)
            assert (told.status, told.reason) == (403, "no_grant")
            assert told.header("x-sallyport-decision") == plane.recorded.entries[-1].id
        assert (await client.ask("HEAD", "/x")).body == b""
        waiting = client.open(fields_of("POST", "/x"), ended=False)
        told = await client.answer(waiting)
        assert (told.reason, told.ended, told.reset) == ("no_grant", True, None)
        plane.engine.answer = lambda query: ALLOW
        assert (await client.get()).status == 200
    assert upstream.dials == 1
    assert [entry.allow for entry in plane.recorded.entries] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (fields_of("GET", "/a//b"), Reason.PATH_AMBIGUOUS),
        (fields_of("GET", "/x", ("connection", "close")), Reason.REQUEST_MALFORMED),
        (fields_of("GET", "/x", ("host", "other.example")), Reason.REQUEST_AMBIGUOUS),
        (fields_of("GET", "/x", ("X-Upper", "1")), Reason.REQUEST_MALFORMED),
        (fields_of("TRACE", "/x"), Reason.METHOD_UNSUPPORTED),
        (fields_of("GET", "/x", ("x-a", "1\r\nx-sallyport-identity: spiffe://evil")), Reason.REQUEST_MALFORMED),
        (fields_of("GET", "/x", *[(f"x-{i}", "") for i in range(101)]), Reason.HEADERS_TOO_LARGE),
        ([(":method", "CONNECT"), (":authority", "a.example:22")], Reason.REQUEST_MALFORMED),
        (fields_of("CONNECT", "/x"), Reason.METHOD_UNSUPPORTED),
    ],
)
async def test_what_is_no_request_is_told_so_and_recorded(
    tmp_path: Path, fields: list[tuple[str, str]], reason: Reason
) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        told = await client.answer(client.open(fields))
        assert (told.status, told.reason) == (reason.status, reason.code)
        # RFC 9113 §8.1.1 makes the one an error of the stream; the others are answers like any.
        is_malformed = reason is Reason.REQUEST_MALFORMED
        assert (told.ended, told.reset) == (not is_malformed, ErrorCodes.PROTOCOL_ERROR if is_malformed else None)
        assert [entry.reasons for entry in plane.recorded.entries] == [(reason.code,)]
        assert (await client.get()).status == 200
    assert upstream.dials == 1


async def test_a_get_with_a_body_is_refused(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("GET", "/x"), ended=False)
        told = await client.answer(number)
        assert told.reason == Reason.REQUEST_AMBIGUOUS.code
    assert upstream.dials == 0


@pytest.mark.parametrize("sent", [b"ab", b"abcd"])
async def test_a_body_of_another_length_than_declared_does_not_arrive(tmp_path: Path, sent: bytes) -> None:
    bodies: list[bytes] = []

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        bodies.append(await reader.readexactly(3))
        writer.write(OK)

    async with http2_to(RawUpstream(whole), tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x", ("content-length", "3")), ended=False)
        client.data(number, sent, ended=True)
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.PROTOCOL_ERROR
        await plane.until(lambda: plane.registry.open_count == 0)
    assert bodies == []


async def test_a_body_beyond_the_routes_bound_is_refused(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(saying(b"")), tmp_path, max_body=10) as plane:
        client = await connect(plane)
        assert (await client.ask("POST", "/x", body=b"x" * 11)).reason == Reason.BODY_TOO_LARGE.code
        declared = await client.ask("POST", "/x", ("content-length", "11"), body=b"x" * 11)
        assert declared.reason == Reason.BODY_TOO_LARGE.code


@pytest.mark.parametrize("trailer", [("Upper", "1"), (":path", "/"), ("x-a", "1\n2")])
async def test_trailers_that_are_no_fields_refuse_the_request(tmp_path: Path, trailer: tuple[str, str]) -> None:
    async with http2_to(Echo(), tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("POST", "/x"), ended=False)
        client.h2.send_headers(number, [trailer], end_stream=True)
        client.flush()
        assert (await client.answer(number)).reason == Reason.REQUEST_MALFORMED.code


async def test_an_identity_has_a_bounded_number_of_streams(tmp_path: Path) -> None:
    upstream = Gated()
    async with http2_to(upstream, tmp_path, Http2Settings(streams_per_identity=3)) as plane:
        first, second = await connect(plane), await connect(plane)
        for client in (first, first, second):
            client.open(fields_of("GET", "/slow"))
        await plane.until(lambda: upstream.waiting == 3)
        assert (await second.get()).reason == Reason.OVERLOADED.code
        upstream.go_on.set()
        await plane.until(lambda: plane.registry.open_count == 0)
        assert (await second.get()).status == 200


async def test_streams_that_wait_for_a_decision_are_bounded(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    class Slow(FakeEngine):
        async def decide(self, query: Query) -> object:  # type: ignore[override]
            await go_on.wait()
            return ALLOW

    async with http2_to(RawUpstream(), tmp_path, Http2Settings(undecided=2)) as plane:
        plane.publish(engine=Slow(cached=False), revision=2)
        client = await connect(plane)
        numbers = [client.open(fields_of("GET", f"/{i}")) for i in range(3)]
        assert (await client.answer(numbers[2])).reason == Reason.OVERLOADED.code
        go_on.set()
        assert [(await client.answer(number)).status for number in numbers[:2]] == [200, 200]


# --- WebSocket by extended CONNECT (RFC 8441) ---------------------------------------------------------------


def websocket(key: bytes = b"") -> RawUpstream:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await upstream.request(reader)
        asked = head.split(b"sec-websocket-key: ")[1].split(b"\r\n")[0]
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\nhello" % websocket_accept(key or asked)
        )
        while data := await reader.read(65536):
            if data == b"bye":
                return
            writer.write(data.upper())

    upstream = RawUpstream(switch)
    return upstream


ASKS = fields_of("CONNECT", "/ws", (":protocol", "websocket"), ("sec-websocket-version", "13"))
ASKS = [ASKS[0], ASKS[4], *ASKS[1:4], *ASKS[5:]]


async def test_a_websocket_is_joined_both_ways(tmp_path: Path) -> None:
    upstream = websocket()
    async with http2_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await connect(plane)
        number = client.open(ASKS, ended=False)
        told = client.streams[number]
        await client.until(lambda: told.body == b"hello")
        assert (told.status, told.header("sec-websocket-accept")) == (200, "")
        client.data(number, b"ping")
        await client.until(lambda: told.body == b"helloPING")
        assert plane.registry.open_count == 1
        assert plane.recorded.entries[0].method == "GET"
        client.data(number, b"bye")
        await client.answer(number)
        assert (told.ended, plane.registry.open_count) == (True, 0)
        again = client.open(ASKS, ended=False)
        await client.until(lambda: client.streams[again].body == b"hello")
        client.data(again, b"", ended=True)
        assert (await client.answer(again)).ended
        assert plane.registry.open_count == 0
    keys = {head.split(b"sec-websocket-key: ")[1].split(b"\r\n")[0] for head in upstream.seen}
    assert len(keys) == 2
    assert b"GET /ws HTTP/1.1\r\n" in upstream.seen[0]


async def test_a_websocket_is_refused_where_http_1_refuses_it(tmp_path: Path) -> None:
    upstream = websocket()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        told = await client.answer(client.open(ASKS, ended=False))
        assert told.reason == Reason.UPGRADE_REFUSED.code
    assert upstream.dials == 0


async def test_bytes_before_a_websockets_answer_are_refused(tmp_path: Path) -> None:
    upstream = Gated()
    async with http2_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        client = await connect(plane)
        asks = [(name, "/slow" if name == ":path" else value) for name, value in ASKS]
        number = client.open(asks, ended=False)
        await plane.until(lambda: upstream.waiting == 1)
        client.data(number, b"early")
        assert (await client.answer(number)).reason == Reason.UPGRADE_REFUSED.code
        with_it = client.open(asks, ended=False)
        client.data(with_it, b"early")
        assert (await client.answer(with_it)).reason == Reason.UPGRADE_REFUSED.code


async def test_an_upstream_that_did_not_read_the_key_makes_no_tunnel(tmp_path: Path) -> None:
    async with http2_to(websocket(b"another"), tmp_path, upgrades=("websocket",)) as plane:
        client = await connect(plane)
        told = await client.answer(client.open(ASKS, ended=False))
        assert (told.status, told.reason) == (502, Reason.UPSTREAM_INVALID.code)


# --- what is left --------------------------------------------------------------------------------------------


async def test_a_stream_that_is_over_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    import gc

    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert (await client.get()).status == 200
            kinds = HttpExchange | Exchange | Http2Stream
            left = [each for each in gc.get_objects() if isinstance(each, kinds)]
        finally:
            gc.enable()
    assert left == []


async def test_no_revision_is_a_refusal(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane)
        plane.store.current = replace(plane.store.current, policy=None)
        assert (await client.get()).reason == Reason.REVISION_MISSING.code

"""A whole HTTP/2 connection on real sockets: how it begins, what cuts it or one of its streams, and how it ends."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame

from foundation.identity import Revocation
from foundation.reasons import Reason
from foundation.tls import HTTP_1_1, client_context, server_context
from gateway.proxy.exchange import NEVER
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.http2_connection import Http2Connection
from gateway.proxy.services import GatewayListenerSettings
from tests.fakes.trust import ALLOW, DENY, spiffe
from tests.support.gateway import HOST, DataPlane, RawUpstream, gateway_to, request_bytes
from tests.support.http2 import Http2Client, connect, fields_of, http2_to

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Watched(RawUpstream):
    """Streams for ever to who asks for `/watch`; `open_now` counts those who are watching."""

    def __init__(self) -> None:
        super().__init__(self.watch)
        self.open_now = 0

    async def watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"/watch" not in await self.request(reader):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        self.open_now += 1
        await reader.read()
        self.open_now -= 1


async def watch(client: Http2Client, target: str = "/watch") -> int:
    number = client.open(fields_of("GET", target))
    await client.until(lambda: client.streams[number].body == b"one")
    return number


def connection_of(plane: DataPlane) -> Http2Connection:
    (connection,) = plane.listener.connections
    assert isinstance(connection, Http2Connection)
    return connection


# --- who speaks it ---------------------------------------------------------------------------------------------


async def test_http_1_is_spoken_with_who_does_not_ask_for_http_2(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        assert (await (await plane.connect()).get()).status == 200
        for protocols in (("h2", "http/1.1"), ("http/1.1", "h2"), ("http/1.1",), ("h3",)):
            context = client_context(plane.authority.pem, pair=plane.pair(), check_hostname=False, protocols=protocols)
            _, writer = await asyncio.open_connection(*plane.address, ssl=context, server_hostname=HOST)
            agreed = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert agreed == ("h2" if "h2" in protocols else "http/1.1" if "http/1.1" in protocols else None)
            writer.transport.abort()


async def test_http_2_can_be_turned_off(tmp_path: Path) -> None:
    assert Http2Settings(enabled=False).protocols == HTTP_1_1
    async with http2_to(RawUpstream(), tmp_path) as plane:
        off = Http2Settings(enabled=False).protocols
        plane.context = server_context(plane.server, client_roots=plane.authority.pem, protocols=off)
        client = await connect(plane, begin=False)
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
        client.close()


async def test_prior_knowledge_is_refused(tmp_path: Path) -> None:
    """A preface on a connection that agreed on HTTP/1.1 is a request, and none of ours."""
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        client.send(PREFACE)
        assert (await client.answer()).status in {400, 501}
        assert [entry.allow for entry in plane.recorded.entries] == [False]


async def test_http_1_where_http_2_was_agreed_is_refused(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane, begin=False)
        client.writer.write(request_bytes("GET", "/x"))
        await plane.until(lambda: plane.metrics.refused == [Reason.REQUEST_MALFORMED])
        await plane.advance(plane.settings.linger_timeout + 0.5)
        await client.ended()
    assert upstream.dials == 0


async def test_who_is_turned_away_is_told_why(tmp_path: Path) -> None:
    settings = GatewayListenerSettings(connections_per_identity=1)
    async with http2_to(RawUpstream(), tmp_path, settings=settings) as plane:
        first = await connect(plane)
        assert (await first.get()).status == 200
        second = await connect(plane)
        await second.until(lambda: bool(second.goaways))
        assert second.goaways == [(ErrorCodes.ENHANCE_YOUR_CALM, 0, b"connection_limit")]
        other = await connect(plane, plane.authority.client("spiffe://other.example/node/edge-1"))
        await other.until(lambda: bool(other.goaways))
        assert other.goaways == [(ErrorCodes.INADEQUATE_SECURITY, 0, b"client_certificate_invalid")]
        assert (await first.get()).status == 200
        await plane.advance(plane.settings.linger_timeout + 0.5)
        await second.ended()


async def test_bounds_are_told_in_settings(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path, Http2Settings(streams=7, window=128 << 10)) as plane:
        client = await connect(plane)
        assert (await client.get()).status == 200
        told = client.h2.remote_settings
        assert (told.max_concurrent_streams, told.initial_window_size) == (7, 128 << 10)
        assert (told.header_table_size, told.max_frame_size) == (4096, 16 << 10)
        assert told.max_header_list_size == (16 << 10) + 32 * 100
        assert told[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
        assert client.h2.outbound_flow_control_window > (1 << 20) - 100


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 32) - 1])
async def test_whatever_table_of_header_fields_a_client_wants_it_gets_answers(tmp_path: Path, size: int) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane)
        assert (await client.get()).status == 200
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
        client.flush()
        assert [(await client.get()).status for _ in range(3)] == [200] * 3


# --- cuts -------------------------------------------------------------------------------------------------------


async def test_a_change_cuts_the_streams_that_it_denies_alone(tmp_path: Path) -> None:
    upstream = Watched()
    async with http2_to(upstream, tmp_path) as plane:
        registry = asyncio.create_task(plane.registry.run())
        client = await connect(plane)
        kept, cut = await watch(client, "/watch/1"), await watch(client, "/watch/2")
        plane.engine.answer = lambda query: DENY if query.request.path[-1] == "2" else ALLOW
        plane.publish(revision=2)
        told = await client.answer(cut)
        assert (told.ended, told.reset) == (False, ErrorCodes.CANCEL)
        await plane.until(lambda: upstream.open_now == 1)
        assert not client.streams[kept].over
        assert plane.metrics.answers[-1][1] is Reason.CUT_BY_CHANGE
        assert (await client.get()).status == 200
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)


async def test_a_revocation_aborts_the_connection(tmp_path: Path) -> None:
    upstream = Watched()
    async with http2_to(upstream, tmp_path) as plane:
        plane.know("edge-2")
        client, bystander = await connect(plane), await connect(plane, plane.pair("edge-2"))
        numbers = [await watch(client) for _ in range(3)]
        other = await watch(bystander)
        plane.store.apply(Revocation(1, spiffe(), "", "key_compromise", 1.0))
        assert plane.registry.open_count == 1  # cut before the call returned
        await client.ended()
        assert not any(client.streams[number].ended for number in numbers)
        assert client.goaways == []
        await plane.until(lambda: upstream.open_now == 1)
        assert not bystander.streams[other].over
        assert [entry[1] for entry in plane.metrics.answers[-3:]] == [Reason.CUT_BY_REVOCATION] * 3


async def test_a_deadline_cuts_its_stream(tmp_path: Path) -> None:
    upstream = Watched()
    async with http2_to(upstream, tmp_path) as plane:
        registry = asyncio.create_task(plane.registry.run())
        client = await connect(plane)
        number = await watch(client)
        await plane.until(lambda: plane.registry.open_count == 1)
        plane.clock.advance(100_001)  # the attestation is over
        told = await client.answer(number)
        assert (told.ended, told.reset) == (False, ErrorCodes.CANCEL)
        await plane.until(lambda: upstream.open_now == 0)
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)


# --- ends -------------------------------------------------------------------------------------------------------


async def test_idle_connections_end_once_the_client_knows(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane)
        assert (await client.get()).status == 200
        await plane.advance(plane.settings.idle_timeout + 1)
        await client.ended()
        assert client.goaways == [(ErrorCodes.NO_ERROR, (1 << 31) - 1, b""), (ErrorCodes.NO_ERROR, 1, b"")]


async def test_an_idle_client_that_does_not_answer_is_let_go(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane)
        assert (await client.get()).status == 200
        client.writer.transport.pause_reading()
        await plane.advance(plane.settings.idle_timeout + 2 * plane.settings.linger_timeout + 1)
        await plane.until(lambda: plane.listener.open_count == 0)


async def test_a_client_that_says_nothing_is_let_go(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        silent, half = await connect(plane, begin=False), await connect(plane, begin=False)
        half.writer.write(PREFACE + b"\x00\x00")
        await plane.until(lambda: plane.listener.open_count == 2)
        await plane.advance(plane.settings.first_byte_timeout + plane.settings.linger_timeout + 1)
        await silent.ended()
        await half.ended()


@pytest.mark.parametrize("flags", [("END_STREAM",), ("END_HEADERS", "END_STREAM")])
async def test_a_header_block_must_end_in_time(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Whether CONTINUATION is awaited, or the rest of HEADERS: no other stream can go on meanwhile."""
    upstream = Watched()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = await watch(client)
        raw = client.open_raw(fields_of("GET", "/x"), flags=flags).serialize()
        client.writer.write(raw if len(flags) == 1 else raw[:-1])
        await plane.until(lambda: connection_of(plane)._budget.in_header_block)
        await plane.advance(plane.settings.header_timeout + 1)
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.ENHANCE_YOUR_CALM
        await plane.until(lambda: upstream.open_now == 0)
        assert not client.streams[number].ended


async def test_a_client_that_says_goaway_gets_what_it_asked_for(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.request(reader)
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream = RawUpstream(slow)
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = client.open(fields_of("GET", "/x"))
        await plane.until(lambda: bool(upstream.seen))
        client.send(GoAwayFrame(0, last_stream_id=0, error_code=0))
        await plane.until(lambda: connection_of(plane)._draining)
        go_on.set()
        assert (await client.answer(number)).body == b"ok"
        await client.ended()


async def test_a_client_that_never_reads_is_not_read_either_and_let_go(tmp_path: Path) -> None:
    """Its windows are open, so that answers fill the transport."""

    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await upstream.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            written += 1 << 16

    upstream = RawUpstream(flood)
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
        client.h2.increment_flow_control_window((1 << 31) - 65_536)
        client.open(fields_of("GET", "/x"))
        client.writer.transport.pause_reading()
        before = -1
        while before != written:  # until the kernel's buffers are full too
            before = written
            await plane.until(lambda: any(each._full_until < NEVER for each in plane.listener.connections))
            await asyncio.sleep(0.2)
        for _ in range(50):
            client.send(client.open_raw(fields_of("GET", "/x")))
        await plane.advance(plane.settings.body_timeout + 1)
        assert plane.listener.open_count == 0
        assert len(plane.recorded.entries) == 1


async def test_frames_that_break_the_rules_end_the_connection(tmp_path: Path) -> None:
    upstream = Watched()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        await watch(client)
        client.send(SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 31}))
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.FLOW_CONTROL_ERROR
        assert plane.metrics.refused == [Reason.REQUEST_MALFORMED]
        await plane.until(lambda: upstream.open_now == 0 and plane.registry.open_count == 0)


async def test_fields_that_cannot_be_decoded_end_the_connection(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane)
        frame = client.open_raw(fields_of("GET", "/x"))
        frame.data = b"\x80"  # the field number 0 of a table that begins with 1
        client.send(frame)
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.COMPRESSION_ERROR


# --- draining -----------------------------------------------------------------------------------------------------


async def drained(plane: DataPlane, draining: asyncio.Task[None]) -> None:
    while not draining.done():
        await plane.advance(0.25)
        await asyncio.sleep(0.001)


async def test_draining_serves_what_was_on_its_way_and_loses_nothing(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await upstream.request(reader)
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream = RawUpstream(slow)
    async with http2_to(upstream, tmp_path) as plane:
        idle, busy = await connect(plane), await connect(plane)
        numbers = [busy.open(fields_of("GET", f"/{i}")) for i in range(3)]
        await plane.until(lambda: len(upstream.seen) == 3)
        busy.writer.transport.pause_reading()  # its GOAWAY is on its way
        draining = asyncio.create_task(plane.listener.drain(30))
        await idle.ended()
        assert [each[0] for each in idle.goaways] == [ErrorCodes.NO_ERROR] * 2
        numbers.append(busy.open(fields_of("GET", "/late")))
        await plane.until(lambda: len(upstream.seen) == 4)
        busy.writer.transport.resume_reading()
        await busy.until(lambda: len(busy.goaways) == 2)
        assert [last for _, last, _ in busy.goaways] == [(1 << 31) - 1, numbers[-1]]
        too_late = busy.open(fields_of("GET", "/too-late"))
        assert (await busy.answer(too_late)).reset == ErrorCodes.REFUSED_STREAM
        go_on.set()
        assert [(await busy.answer(number)).body for number in numbers] == [b"ok"] * 4
        await busy.ended()
        await drained(plane, draining)
    assert len(upstream.seen) == 4


async def test_draining_ends_clients_that_have_not_begun(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        client = await connect(plane, begin=False)
        await plane.until(lambda: plane.listener.open_count == 1)
        draining = asyncio.create_task(plane.listener.drain(5))
        await drained(plane, draining)
        await client.ended()


async def test_draining_ends_what_does_not_end(tmp_path: Path) -> None:
    upstream = Watched()
    async with http2_to(upstream, tmp_path) as plane:
        client = await connect(plane)
        number = await watch(client)
        draining = asyncio.create_task(plane.listener.drain(5))
        await drained(plane, draining)
        await client.ended()
        assert not client.streams[number].ended
        await plane.until(lambda: plane.registry.open_count == 0)


async def test_both_protocols_drain_together(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        old, new = await plane.connect(), await connect(plane)
        assert (await old.get()).status == (await new.get()).status == 200
        draining = asyncio.create_task(plane.listener.drain(30))
        await new.ended()
        assert await old.ended() == b""
        await drained(plane, draining)
        with pytest.raises((OSError, ssl.SSLError)):
            await asyncio.wait_for(connect(plane), 0.2)

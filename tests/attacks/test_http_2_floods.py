"""Row "HTTP/2 floods" (CVE-2023-44487 rapid reset, CVE-2025-8671 MadeYouReset, CONTINUATION floods): frames that cost
us more than the client have budgets. Who overruns one is told ENHANCE_YOUR_CALM and ends, counted; a neighbour is
served before, during and after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from gateway.proxy.http2_budget import Flood, Http2Settings
from gateway.proxy.http2_connection import Http2Connection
from tests.support.gateway import DataPlane, RawUpstream, saying
from tests.support.http2 import Http2Client, connect, fields_of, http2_to

MOST = 20_000  # frames after which a test gives up: no budget held
Frames = Callable[[Http2Client], list[Frame]]


class Patient(RawUpstream):
    """Answers a GET at once, and a POST never."""

    def __init__(self) -> None:
        super().__init__(self.serve)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await self.request(reader)).startswith(b"GET "):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()


async def assert_calmed(
    tmp_path: Path, frames: Frames, flood: Flood, settings: Http2Settings | None = None
) -> DataPlane:
    """Sends `frames` again and again, with a neighbour beside, until the gateway has enough."""
    async with http2_to(Patient(), tmp_path, settings) as plane:
        neighbour, client = await connect(plane), await connect(plane)
        assert (await client.get()).status == 200
        sent = 0
        while not client.goaways and sent < MOST:
            batch = [frame for _ in range(20) for frame in frames(client)]
            client.send(*batch)
            sent += max(1, len(batch))
            assert (await neighbour.get()).status == 200
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[-1][0] == ErrorCodes.ENHANCE_YOUR_CALM
        assert client.goaways[-1][2] == flood.value.encode()
        assert plane.metrics.floods == [flood]
        assert (await neighbour.get()).status == 200
        await plane.advance(plane.settings.linger_timeout + 0.5)
        await client.ended()
        assert (plane.registry.open_count, plane.listener.open_count) == (0, 1)
    return plane


def rapid_reset(client: Http2Client) -> list[Frame]:
    request = client.open_raw(fields_of("GET", "/x"))
    return [request, RstStreamFrame(request.stream_id, error_code=int(ErrorCodes.CANCEL))]


def window_overflow(client: Http2Client) -> list[Frame]:
    request = client.open_raw(fields_of("GET", "/x"))
    return [request, WindowUpdateFrame(request.stream_id, window_increment=(1 << 31) - 1)]


def data_behind_the_end(client: Http2Client) -> list[Frame]:
    request = client.open_raw(fields_of("GET", "/x"))
    return [request, DataFrame(request.stream_id, b"x")]


def headers_behind_the_end(client: Http2Client) -> list[Frame]:
    request = client.open_raw(fields_of("GET", "/x"))
    return [request, HeadersFrame(request.stream_id, client.h2.encoder.encode([("a", "b")]), flags=["END_HEADERS"])]


def malformed(client: Http2Client) -> list[Frame]:
    client.open([*fields_of("GET", "/x"), ("connection", "close")])
    return []


@pytest.mark.parametrize(
    "frames", [rapid_reset, window_overflow, data_behind_the_end, headers_behind_the_end, malformed]
)
async def test_a_stream_that_is_reset_costs_whoever_made_it_so(tmp_path: Path, frames: Frames) -> None:
    """The client resets, or breaks the stream's rules so that we do: both spend one budget."""
    plane = await assert_calmed(tmp_path, frames, Flood.RESETS)
    floods = [entry for entry in plane.recorded.entries if entry.target == "/x"]
    assert len(floods) <= Http2Settings().resets_per_second * 10 + 1


def empty_data(client: Http2Client, *flags: str) -> list[Frame]:
    if not client.h2.open_outbound_streams:
        client.open(fields_of("POST", "/x"), ended=False)
    return [DataFrame(max(client.h2.streams), b"", flags=list(flags))]


def padded_data(client: Http2Client) -> list[Frame]:
    (frame,) = empty_data(client, "PADDED")
    assert isinstance(frame, DataFrame)
    frame.pad_length = 10
    return [frame]


def stray_data(client: Http2Client) -> list[Frame]:
    """For a stream whose answer was whole before the request was."""
    if 3 not in client.streams:
        client.open(fields_of("GET", "/a//b"), ended=False)
    return [DataFrame(3, b"x")] if client.streams[3].over else []


@pytest.mark.parametrize(
    "frames",
    [
        lambda client: [SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: 70_000})],
        lambda client: [SettingsFrame(0, flags=["ACK"])],
        lambda client: [PingFrame(0, opaque_data=b"12345678")],
        lambda client: [PingFrame(0, opaque_data=b"12345678", flags=["ACK"])],
        lambda client: [PriorityFrame(1, depends_on=0, stream_weight=1)],
        lambda client: [WindowUpdateFrame(0, window_increment=1)],
        lambda client: [WindowUpdateFrame(1, window_increment=1)],
        lambda client: [ExtensionFrame(0x21, 0)],
        empty_data,
        padded_data,
        stray_data,
    ],
    ids=[
        "settings",
        "settings-ack",
        "ping",
        "ping-ack",
        "priority",
        "window",
        "stray-window",
        "unknown",
        "empty-data",
        "padding",
        "stray-data",
    ],
)
async def test_frames_that_mean_nothing_have_a_budget(tmp_path: Path, frames: Frames) -> None:
    await assert_calmed(tmp_path, frames, Flood.CONTROL)


def held_of(plane: DataPlane) -> int:
    """Bytes that h2 keeps of what came."""
    connections = [each for each in plane.listener.connections if isinstance(each, Http2Connection)]
    buffers = [each._h2.incoming_buffer for each in connections]
    return sum(len(each._data) + sum(len(frame.data) for frame in each._headers_buffer) for each in buffers)


@pytest.mark.parametrize(("piece", "flood"), [(b"", Flood.CONTINUATIONS), (b"x" * 16_000, Flood.HEADERS)])
async def test_a_header_block_has_bounds_before_anything_of_it_is_kept(
    tmp_path: Path, piece: bytes, flood: Flood
) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        neighbour, client = await connect(plane), await connect(plane)
        assert (await client.get()).status == 200
        client.send(client.open_raw(fields_of("GET", "/x"), flags=("END_STREAM",)))
        most = 0
        while not client.goaways:
            client.send(ContinuationFrame(3, piece))
            assert (await neighbour.get()).status == 200
            most = max(most, held_of(plane))
        assert client.goaways == [(ErrorCodes.ENHANCE_YOUR_CALM, 1, flood.value.encode())]
        assert plane.metrics.floods == [flood]
        assert most <= 2 * plane.settings.head_bytes
        assert {entry.target for entry in plane.recorded.entries} == {"/v1/things"}


async def test_a_frame_is_refused_by_its_length_alone(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(), tmp_path) as plane:
        neighbour, client = await connect(plane), await connect(plane)
        client.flush()
        client.writer.write(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.FRAME_SIZE_ERROR
        assert plane.metrics.floods == [Flood.FRAME]
        assert (await neighbour.get()).status == 200


async def test_a_header_list_that_unfolds_is_refused(tmp_path: Path) -> None:
    """A field of 4,000 bytes in the table, named again and again by one byte each (CVE-2016-6581)."""
    async with http2_to(RawUpstream(), tmp_path) as plane:
        neighbour, client = await connect(plane), await connect(plane)
        frame = client.open_raw([*fields_of("GET", "/x"), ("x-a", "a" * 4_000)])
        frame.data += Encoder().encode([]) + b"\xbe" * 4_000
        client.send(frame)
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][0] == ErrorCodes.ENHANCE_YOUR_CALM
        assert plane.metrics.floods == [Flood.HEADERS]
        assert (await neighbour.get()).status == 200
        assert [entry.target for entry in plane.recorded.entries] == ["/v1/things"]


async def test_streams_beyond_what_was_told_end_the_connection(tmp_path: Path) -> None:
    async with http2_to(RawUpstream(saying(b"")), tmp_path, Http2Settings(streams=5)) as plane:
        client = await connect(plane)
        client.send(*[client.open_raw(fields_of("GET", "/x")) for _ in range(6)])
        await client.until(lambda: bool(client.goaways))
        assert client.goaways == [(ErrorCodes.ENHANCE_YOUR_CALM, 9, b"streams")]
        assert plane.metrics.floods == [Flood.STREAMS]
        await plane.until(lambda: plane.registry.open_count == 0)


async def test_windows_that_stay_shut_spend_the_budget_of_resets(tmp_path: Path) -> None:
    """A slow reader loses its streams, and the connection too when it goes on."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    async with http2_to(RawUpstream(saying(answer)), tmp_path, Http2Settings(resets_per_second=1)) as plane:
        client = await connect(plane)
        client.acknowledges = False
        client.h2.increment_flow_control_window(4 << 20)
        numbers = [client.open(fields_of("GET", f"/{i}")) for i in range(12)]
        await client.until(lambda: all(len(client.streams[number].body) == 65_535 for number in numbers))
        await plane.advance(plane.settings.body_timeout + 1)
        await client.until(lambda: bool(client.goaways))
        assert client.goaways[0][::2] == (ErrorCodes.ENHANCE_YOUR_CALM, b"resets")
        assert plane.metrics.floods == [Flood.RESETS]
        assert plane.registry.open_count == 0


async def test_settings_that_nobody_knows_are_not_kept(tmp_path: Path) -> None:
    """h2 would keep 760 bytes for each that a client names, and there are 65,536."""
    async with http2_to(Patient(), tmp_path) as plane:
        client = await connect(plane)
        assert (await client.get()).status == 200
        (connection,) = plane.listener.connections
        assert isinstance(connection, Http2Connection)
        for number in range(0x10, 0x100):
            client.send(SettingsFrame(settings={number: 1}))
            if number % 8 == 0:
                await plane.advance(1.0)  # within the budget
                assert (await client.get()).status == 200
        assert len(connection._h2.remote_settings) <= len(SettingCodes)


async def test_a_busy_client_overruns_nothing(tmp_path: Path) -> None:
    """Time stands still here, so that no budget fills again by itself."""
    body = bytes(100_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body
    async with http2_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await connect(plane)
        for _ in range(25):
            numbers = [client.open(fields_of("GET", "/x")) for _ in range(10)]
            for number in numbers:
                told = await client.answer(number)
                assert len(told.body) == len(body)
        assert plane.metrics.floods == client.goaways == []

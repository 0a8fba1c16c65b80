"""A client that speaks HTTP/2 to a data plane: h2's client side, and raw frames for what h2 would not send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import h2.connection
import h2.events
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2ConnectionStateMachine
from h2.exceptions import ProtocolError
from hyperframe.frame import Frame, HeadersFrame

from foundation.tls import HTTP_2, KeyPair, client_context
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.services import GatewayListenerSettings
from tests.support.gateway import HOST, PATIENCE, DataPlane, RawUpstream, route

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


Headers = list[tuple[str, str]]


@dataclass
class Told:
    """What came of one stream."""

    informed: list[int] = field(default_factory=list)
    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    ended: bool = False
    reset: int | None = None  # the error code of RST_STREAM

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    @property
    def reason(self) -> str:
        return str(json.loads(self.body)["reason"])

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class _States(H2ConnectionStateMachine):
    """A GOAWAY ends nothing that is under way (RFC 9113 §6.8)."""

    _transitions: ClassVar = {
        **H2ConnectionStateMachine._transitions,
        (ConnectionState.IDLE, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.IDLE),
        (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.CLIENT_OPEN),
    }


class Http2Client:
    """`acknowledges`: whether it opens windows for what it reads. `goaways` are the GOAWAYs that came, as (error, last
    stream, debug data)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.h2.state_machine = _States()
        self.streams: dict[int, Told] = {}
        self.goaways: list[tuple[int, int, bytes]] = []
        self.acknowledges = True
        self.pongs = 0
        self.closed = False
        self._changed = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    def begin(self) -> None:
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def send(self, *frames: Frame) -> None:
        """Frames as they are, past h2's rules."""
        self.flush()
        self.writer.write(b"".join(frame.serialize() for frame in frames))

    def open(self, fields: Headers, *, ended: bool = True) -> int:
        """Begin a request; the stream's id."""
        number = self.h2.get_next_available_stream_id()
        self.streams[number] = Told()
        self.h2.send_headers(number, fields, end_stream=ended)
        self.flush()
        return number

    def open_raw(self, fields: Headers, *, flags: tuple[str, ...] = ("END_HEADERS", "END_STREAM")) -> HeadersFrame:
        """A HEADERS frame of a new stream, which h2 does not know of and which is not sent yet."""
        number = self.h2.get_next_available_stream_id()
        self.h2.highest_outbound_stream_id = number
        frame = HeadersFrame(number, self.h2.encoder.encode(fields))
        for flag in flags:
            frame.flags.add(flag)
        return frame

    def data(self, number: int, data: bytes, *, ended: bool = False) -> None:
        self.h2.send_data(number, data, end_stream=ended)
        self.flush()

    async def upload(self, number: int, body: bytes, *, piece: int = 16_384) -> int:
        """Send `body` as far as windows allow, and end it; the bytes sent."""
        sent = 0
        while sent < len(body):
            window = self.h2.local_flow_control_window(number)
            if window <= 0:
                try:
                    async with asyncio.timeout(0.5):
                        await self._next()
                except TimeoutError:
                    return sent
                continue
            size = min(window, piece, self.h2.max_outbound_frame_size, len(body) - sent)
            self.data(number, body[sent : sent + size], ended=sent + size == len(body))
            sent += size
            await self.writer.drain()
        return sent

    async def ask(self, method: str, target: str, *extra: tuple[str, str], body: bytes | None = None) -> Told:
        number = self.open(fields_of(method, target, *extra), ended=body is None)
        if body is not None:
            await self.upload(number, body)
        return await self.answer(number)

    async def get(self, target: str = "/v1/things", *extra: tuple[str, str]) -> Told:
        return await self.ask("GET", target, *extra)

    async def answer(self, number: int) -> Told:
        """The answer, once it is whole, or the stream is reset."""
        told = self.streams.setdefault(number, Told())
        await self.until(lambda: told.over)
        return told

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert not self.closed, f"the connection ended: {self.goaways}"
                await self._next()

    async def ended(self) -> None:
        """Wait for the connection's end, however it ends."""
        async with asyncio.timeout(PATIENCE):
            while not self.closed:
                await self._next()

    def close(self) -> None:
        self._reading.cancel()
        self.writer.transport.abort()

    async def _next(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError, ProtocolError):
            while data := await self._reader.read(65_536):
                for event in self.h2.receive_data(data):
                    self._take(event)
                self.flush()
                self._changed.set()
        self.closed = True
        self._changed.set()

    def _take(self, event: h2.events.Event) -> None:
        told = self.streams.get(getattr(event, "stream_id", None) or 0, Told())
        if isinstance(event, h2.events.InformationalResponseReceived):
            told.informed.append(int(dict(_text(event.headers))[":status"]))
        elif isinstance(event, h2.events.ResponseReceived):
            told.headers = _text(event.headers)
            told.status = int(told.header(":status"))
        elif isinstance(event, h2.events.DataReceived):
            told.body += event.data or b""
            if self.acknowledges and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
        elif isinstance(event, h2.events.TrailersReceived):
            told.trailers = _text(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            told.ended = True
        elif isinstance(event, h2.events.StreamReset):
            told.reset = int(event.error_code or 0)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append((int(event.error_code or 0), event.last_stream_id or 0, event.additional_data or b""))


def _text(headers: Any) -> Headers:
    return [(str(name), str(value)) for name, value in headers]


def fields_of(method: str, target: str, *extra: tuple[str, str]) -> Headers:
    return [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", target), *extra]


async def connect(plane: DataPlane, pair: KeyPair | None = None, *, begin: bool = True) -> Http2Client:
    context = client_context(plane.authority.pem, pair=pair or plane.pair(), check_hostname=False, protocols=(HTTP_2,))
    reader, writer = await asyncio.open_connection(*plane.address, ssl=context, server_hostname=HOST)
    client = Http2Client(reader, writer)
    plane.clients.append(client)
    if begin:
        client.begin()
    return client


@contextlib.asynccontextmanager
async def http2_to(
    upstream: RawUpstream,
    folder: Any,
    http2: Http2Settings | None = None,
    settings: GatewayListenerSettings | None = None,
    **changes: Any,
) -> AsyncIterator[DataPlane]:
    """A data plane with one route to `upstream`."""
    async with upstream.running() as address:
        plane = DataPlane(
            folder,
            (route(address, **changes),),
            settings or GatewayListenerSettings(),
            http2=http2 or Http2Settings(),
        )
        async with plane.running():
            yield plane


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def body_of(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The request's body, by chunks or Content-Length."""
    if b"content-length: " in head:
        return await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    body = b""
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return body


class Echo(RawUpstream):
    """Answers with the body that it got, in chunks."""

    def __init__(self) -> None:
        super().__init__(self.echo)

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await head_of(reader)
            self.seen.append(head)
            body = await body_of(reader, head)
            writer.write(CHUNKED + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n")

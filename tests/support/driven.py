"""A gateway's client connection driven by hand: the real protocol and everything behind it, without a socket or TLS in
front, so that thousands of byte strings can be tried; and an upstream that reads only what a gateway may write."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from foundation.ports import DecisionEntry
from policies.upstreams import Address
from tests.support.gateway import DataPlane, route
from tests.support.peers_behind import Message

# Names that no upstream may find behind a body, however they are spelled.
DECIDING = re.compile(
    rb"host|te|trailer|expect|connection|upgrade|cookie|range|origin|authorization|forwarded|transfer[-_.].*|if[-_.].*"
    rb"|content[-_.](length|type|encoding|range)|proxy[-_.].*|x[-_.](forwarded|sallyport|remote|real|original|http)[-_.].*"
    rb"|impersonate[-_.].*|trace(parent|state)",
    re.IGNORECASE,
)
_QUIET_TURNS = 12  # turns of the loop without anything new, after which nothing is under way
_MOST_TURNS = 5_000


class InMemoryTransport(asyncio.Transport):
    """A TLS transport as far as a connection asks: whose certificate it was, and what was written."""

    def __init__(self, certificate: bytes, agreed: str | None) -> None:
        super().__init__()
        self._certificate = certificate
        self._agreed = agreed
        self._protocol: asyncio.BaseProtocol | None = None
        self.written = b""
        self.ended = False
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"ssl_object": self, "peername": ("127.0.0.1", 1)}.get(name, default)

    def getpeercert(self, binary_form: bool) -> bytes:
        return self._certificate

    def selected_alpn_protocol(self) -> str | None:
        return self._agreed

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.ended:
            self.written += bytes(data)

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


@dataclass
class Outcome:
    """What became of a byte string: what was decided, and what went upstream. `messages` are the whole requests among
    the forwarded bytes, each with its bytes; `rest` is the part of one that is not whole."""

    decided: list[DecisionEntry]
    messages: list[tuple[Message, bytes]]
    rest: bytes

    @property
    def raw(self) -> bytes:
        return b"".join(raw for _, raw in self.messages)


class StrictUpstream:
    """Reads what gateways write and nothing else: a head in the one form that they have, and a body whose framing could
    not be plainer. Anything else raises, and fails the test. Answers each whole request."""

    def __init__(self) -> None:
        self.messages: list[tuple[Message, bytes]] = []
        self.rest = b""
        self.taken = 0
        self.surprise: AssertionError | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._read(reader, writer)
        except ConnectionError:
            pass
        except AssertionError as surprise:
            self.surprise = surprise
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = b""
        while data := await reader.read(1 << 16):
            self.taken += len(data)
            held += data
            while (found := read_canonical(held)) is not None:
                message, size = found
                self.messages.append((message, held[:size]))
                held = held[size:]
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            self.rest = held

    async def close(self) -> None:
        """End its connections, and let them notice."""
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0)


_HEAD = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[!-~]*) HTTP/1\.1\r\nhost: ([!-~]+)\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\0-\x08\n-\x1f\x7f]*)")
_CHUNK = re.compile(rb"([0-9a-f]{1,16})\r\n")


def read_canonical(raw: bytes) -> tuple[Message, int] | None:
    """The request at the beginning of `raw`, and its size; None when it is not whole. Raises `AssertionError` for
    anything that a gateway does not write."""
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        return None
    first = _HEAD.match(raw)
    assert first, raw
    fields = []
    for line in raw[first.end() : end].split(b"\r\n"):
        found = _FIELD.fullmatch(line)
        assert found, line
        fields.append((found[1].lower(), found[2]))
    lengths = [value for name, value in fields if name in {b"content-length", b"transfer-encoding"}]
    assert len(lengths) <= 1, raw
    assert not any(name == b"host" for name, _ in fields), raw
    body, size = _body(raw[end + 4 :], lengths[0] if lengths else b"0")
    if size < 0:
        return None
    method, target, host = first.groups()
    return Message(method.decode(), target.decode(), host.decode(), body), end + 4 + size


def _body(raw: bytes, length: bytes) -> tuple[bytes, int]:
    """The payload, and the size of the body with its framing; a negative size when it is not whole."""
    if length != b"chunked":
        size = int(length)
        return raw[:size], size if len(raw) >= size else -1
    payload, position = b"", 0
    while (found := _CHUNK.match(raw, position)) is not None:
        size, position = int(found[1], 16), found.end()
        if len(raw) < position + size + 2:
            return b"", -1
        if size == 0:
            return payload, _behind_trailers(raw, position)
        assert raw[position + size : position + size + 2] == b"\r\n", raw
        payload += raw[position : position + size]
        position += size + 2
    return b"", -1


def _behind_trailers(raw: bytes, position: int) -> int:
    """The position behind a trailer section, which holds fields that decide nothing; negative when it is not whole."""
    while (end := raw.find(b"\r\n", position)) > position:
        found = _FIELD.fullmatch(raw, position, end)
        assert found, raw
        assert not DECIDING.fullmatch(found[1]), raw
        position = end + 2
    return end + 2 if end == position else -1


class DrivenGateway:
    """Feeds byte strings to client connections, one after another."""

    def __init__(self, plane: DataPlane, upstream: StrictUpstream, certificate: bytes) -> None:
        self._plane = plane
        self._upstream = upstream
        self._certificate = certificate

    async def feed(self, pieces: Iterable[bytes], agreed: str | None = None) -> Outcome:
        """What becomes of these bytes, from a client that goes then. `agreed` is the protocol that ALPN agreed on."""
        plane, upstream = self._plane, self._upstream
        plane.recorded.entries.clear()
        upstream.messages.clear()
        upstream.rest = b""
        transport = arrive(plane, self._certificate, agreed)
        connection = transport.get_protocol()
        assert isinstance(connection, asyncio.Protocol)
        for piece in pieces:
            if transport.ended:
                break
            connection.data_received(piece)
        await self._settle(transport)
        if upstream.surprise is not None:
            raise upstream.surprise
        outcome = Outcome(list(plane.recorded.entries), list(upstream.messages), upstream.rest)
        transport.abort()
        connection.connection_lost(None)
        return outcome

    async def _settle(self, transport: InMemoryTransport) -> None:
        upstream, entries = self._upstream, self._plane.recorded.entries
        await settle(lambda: (len(transport.written), transport.ended, upstream.taken, len(entries)))


def arrive(plane: DataPlane, certificate: bytes, agreed: str | None = None) -> InMemoryTransport:
    """A connection whose client proved `certificate` (DER); `agreed` is the protocol that ALPN agreed on."""
    transport = InMemoryTransport(certificate, agreed)
    plane.listener._arrival(("127.0.0.1", 1)).connection_made(transport)
    return transport


async def settle(seen: Callable[[], object]) -> None:
    """Until nothing moves any more, as far as it can be `seen`."""
    quiet, before = 0, seen()
    for _ in range(_MOST_TURNS):
        await asyncio.sleep(0)
        now = seen()
        quiet = quiet + 1 if now == before else 0
        before = now
        if quiet >= _QUIET_TURNS:
            return
    raise AssertionError("the gateway does not come to rest")


@contextlib.asynccontextmanager
async def driven_gateway(folder: Path, **changes: Any) -> AsyncIterator[DrivenGateway]:
    """A gateway with one route to a `StrictUpstream`, and policy that allows everything."""
    upstream = StrictUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    address = Address(*server.sockets[0].getsockname()[:2])
    plane = DataPlane(folder, (route(address, **changes),))
    try:
        yield DrivenGateway(plane, upstream, client_certificate(plane))
    finally:
        await plane.upstreams.close()
        server.close()
        await upstream.close()


def client_certificate(plane: DataPlane) -> bytes:
    """The DER certificate of a client that `plane` knows."""
    certificate = x509.load_pem_x509_certificate(plane.pair().certificate.read_bytes())
    return certificate.public_bytes(Encoding.DER)

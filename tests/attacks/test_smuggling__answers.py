"""Row "smuggling", the other way: an upstream's broken answer is one answer or none. What is left of it is never the
answer to the next request, whoever asks it."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from tests.support.driven import InMemoryTransport, arrive, client_certificate, settle
from tests.support.gateway import DataPlane, RawUpstream, request_bytes, route
from tests.support.mutation import INNER, chunked, mutants

CASES = 2_000
SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"
OK = b"HTTP/1.1 200 OK\r\n"
SEEDS = [
    OK + b"Content-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
    OK + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hello", b" world"),
    OK + b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n" + chunked(SMUGGLED, trailers=b"X-T: 1\r\n"),
    OK + b"Content-Length: 0\r\n\r\n",
    OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
    OK + b"Connection: X-A\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok",
    OK + b"Content-Length: 5\r\n\r\nhello" + SMUGGLED,
    OK + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(SMUGGLED),
    b"HTTP/1.1 204 No Content\r\n\r\n" + SMUGGLED,
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + SMUGGLED,
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\n\r\n" + INNER,
]
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z' -]*\r\n")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[^\0-\x08\n-\x1f\x7f]*")
_CHUNK = re.compile(rb"([0-9a-f]{1,16})\r\n")


def read_answer(raw: bytes, method: str) -> tuple[int, bytes, int] | None:
    """The final answer at the beginning of `raw`: status, body and size; None when it is not whole. Raises
    `AssertionError` for what a gateway does not write."""
    position = 0
    while True:
        end = raw.find(b"\r\n\r\n", position)
        if end < 0:
            return None
        first = _STATUS.match(raw, position)
        assert first, raw
        lines = [] if end < first.end() else raw[first.end() : end].split(b"\r\n")
        assert all(_FIELD.fullmatch(line) for line in lines), raw
        position, status = end + 4, int(first[1])
        if status >= 200:
            break
    lengths = [line.lower() for line in lines if line.lower().startswith((b"content-length:", b"transfer-encoding:"))]
    assert len(lengths) <= 1, raw
    if method == "HEAD" or status in {204, 304}:
        return status, b"", position
    assert lengths, raw
    return _with_body(raw, position, status, lengths[0])


def _with_body(raw: bytes, position: int, status: int, length: bytes) -> tuple[int, bytes, int] | None:
    if length.startswith(b"content-length:"):
        end = position + int(length.partition(b":")[2])
        return (status, raw[position:end], end) if len(raw) >= end else None
    body = b""
    while (found := _CHUNK.match(raw, position)) is not None:
        size, position = int(found[1], 16), found.end()
        if len(raw) < position + size + 2:
            return None
        assert raw[position + size : position + size + 2] == b"\r\n", raw
        body, position = body + raw[position : position + size], position + size + 2
        if size == 0:
            return status, body, position
    return None


class Answering(RawUpstream):
    """Answers a request for /1 with `answer`, byte for byte, any other with `SECOND`; may close behind it."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.answer = b""
        self.closes = False
        self.taken = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.taken += 1
            first = b" /1 " in head
            writer.write(self.answer if first else SECOND)
            if first and self.closes:
                return


class AskingTwice:
    """A client that asks for /1 and, if it may, for /2 on the same connection; another one asks for /2 in any case."""

    def __init__(self, plane: DataPlane, upstream: Answering) -> None:
        self._plane, self._upstream = plane, upstream
        self._certificate = client_certificate(plane)
        self.seen: Counter[str] = Counter()

    async def ask(self, method: str) -> None:
        one, other = (arrive(self._plane, self._certificate) for _ in range(2))
        await self._send(one, method, "/1")
        answer = read_answer(one.written, method)
        if answer is not None:
            self.seen["answered" if answer[0] != 502 else "refused"] += 1
            assert len(one.written) == answer[2], one.written
        elif one.ended:
            self.seen["cut"] += 1
        else:
            self.seen["unfinished"] += 1
        if answer is not None and not one.ended:
            await self._second(one, answer[2])
            self.seen["went on"] += 1
        await self._second(other, 0)
        for transport in (one, other):
            transport.abort()
            cast(asyncio.Protocol, transport.get_protocol()).connection_lost(None)

    async def _second(self, transport: InMemoryTransport, behind: int) -> None:
        await self._send(transport, "GET", "/2")
        answer = read_answer(transport.written[behind:], "GET")
        assert answer is not None, transport.written[behind:]
        assert answer[:2] == (200, b"second"), transport.written[behind:]

    async def _send(self, transport: InMemoryTransport, method: str, target: str) -> None:
        cast(asyncio.Protocol, transport.get_protocol()).data_received(request_bytes(method, target))
        await settle(lambda: (len(transport.written), transport.ended, self._upstream.taken))


@asynccontextmanager
async def asking_twice(folder: Path, upstream: Answering) -> AsyncIterator[AskingTwice]:
    async with upstream.running() as address:
        plane = DataPlane(folder, (route(address),))
        yield AskingTwice(plane, upstream)
        await plane.upstreams.close()


async def test_what_is_left_of_an_answer_is_nobodys_answer(tmp_path: Path) -> None:
    upstream = Answering()
    async with asking_twice(tmp_path, upstream) as client:
        for number, answer in enumerate(itertools.chain(SEEDS, itertools.islice(mutants(1, SEEDS), CASES))):
            upstream.answer, upstream.closes = answer, number % 4 == 0
            try:
                await client.ask("HEAD" if number % 5 == 0 else "GET")
            except AssertionError as error:
                raise AssertionError(f"{error}\nthe upstream sent {answer!r}") from None
    for what in ("answered", "refused", "went on"):
        assert client.seen[what] > CASES / 10, client.seen
    for what in ("cut", "unfinished"):
        assert client.seen[what] > CASES / 100, client.seen

"""Fuzz targets of the data plane: heads, chunks and targets. What is accepted must read the same in another parser and
when it is sent on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Protocol

import httptools

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.headers import Role, role
from gateway.proxy.http1 import CHUNKED, ChunkedBody, Limits, RequestReader, ResponseReader
from gateway.proxy.http1_write import chunks
from gateway.proxy.normalise import canonical

_REQUESTS, _RESPONSES = RequestReader(Limits()), ResponseReader(Limits(64 << 10, 256))


class _Callbacks:
    """What llhttp reads of one whole message."""

    def __init__(self) -> None:
        self.body, self.messages = b"", 0

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.messages += 1


def _request(raw: bytes) -> None:
    """A head that we read is read in the same way once more, after it was written out as an upstream gets it."""
    head = _REQUESTS.read(raw)
    lines = [b"%b %b HTTP/1.1" % (head.method, head.target), b"Host: " + head.authority]
    lines += [b"%b: %b" % field for field in head.fields]
    if head.length:
        lines.append(b"Transfer-Encoding: chunked" if head.length == CHUNKED else b"Content-Length: %d" % head.length)
    again = _REQUESTS.read(b"\r\n".join(lines) + b"\r\n\r\n")
    plain = {"upgrade": b"", "expects_continue": False, "keep_alive": True, "traceparent": b"", "tracestate": b""}
    assert again == replace(head, **plain, nominated=[], takes_trailers=False)  # type: ignore[arg-type]
    assert all(role(name)[0] in {Role.PASS, Role.SINGLE} for name, _ in head.fields)


def _response(raw: bytes) -> None:
    head = _RESPONSES.read(raw, b"GET")
    assert 100 <= head.status <= 599
    assert all(b"\r" not in value and b"\n" not in value for _, value in head.fields)


def _chunks(raw: bytes) -> None:
    """Chunks that we read are the same to llhttp, whole or byte by byte, and so is what we write of them."""
    body = ChunkedBody(Reason.REQUEST_AMBIGUOUS)
    piece = body.feed(raw)
    one_by_one, payload = ChunkedBody(Reason.REQUEST_AMBIGUOUS), b""
    for position in range(len(raw)):
        if one_by_one.done:
            break
        payload += one_by_one.feed(raw[position : position + 1]).payload
    assert (payload, one_by_one.done) == (piece.payload, piece.done)
    if piece.done:
        whole = raw[: len(raw) - len(piece.rest)]
        written = chunks(piece.payload, True, piece.trailers)
        assert _llhttp(whole) == _llhttp(written) == (piece.payload, 1)
        again = ChunkedBody(Reason.REQUEST_AMBIGUOUS).feed(written)
        assert (again.payload, again.rest, list(again.trailers)) == (piece.payload, b"", list(piece.trailers))
        assert all(role(name)[0] is Role.PASS for name, _ in piece.trailers)


def _llhttp(body: bytes) -> tuple[bytes, int]:
    seen = _Callbacks()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    return seen.body, seen.messages


def _target(raw: bytes) -> None:
    request = canonical(b"GET", raw, b"a", b"")
    assert request.target == raw
    assert not {".", ".."} & set(request.path)
    assert not any(set(segment) & set("/\\;#?\0") for segment in request.path)


class _Target(Protocol):
    def __call__(self, raw: bytes) -> None: ...


def _guarded(target: _Target) -> _Target:
    """A refusal is an answer; anything else that is raised is a defect."""

    def run(raw: bytes) -> None:
        with contextlib.suppress(Fault):
            target(raw)

    return run


EXACT: dict[str, _Target] = {"request": _request, "response": _response, "chunks": _chunks, "target": _target}
TARGETS = {name: _guarded(target) for name, target in EXACT.items()}
SEEDS = {
    "request": [
        b"POST /x?y=1 HTTP/1.1\r\nHost: a.example:8443\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: TE\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: [::1]\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Real-IP: 1\r\n\r\n",
    ],
    "response": [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.0 304 Not Modified\r\nConnection: close\r\n\r\n",
    ],
    "chunks": [b"5\r\nhello\r\n0\r\n\r\n", b"00a\r\n0123456789\r\n0\r\nA: b\r\n\r\nrest", b"0\r\n\r\n"],
    "target": [b"/v3/kv/range?key=%61&b=c+d", b"/caf%C3%A9/", b"/"],
}

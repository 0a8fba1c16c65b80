"""Fuzz targets of HTTP/2: header lists, frames as a budget counts them, and whole connections. What is accepted must
read the same in another parser, and nothing that a client sends may raise anything but a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hpack import Decoder, Encoder, HPACKError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from foundation.faults import Fault
from foundation.tls import HTTP_2
from gateway.proxy.http1 import Limits, RequestReader
from gateway.proxy.http2 import as_http1, trailers_of
from gateway.proxy.http2_budget import Budget, Http2Settings, Overrun
from tests.support.differential import check_authorised
from tests.support.driven import DrivenGateway, driven_gateway

_REQUESTS = RequestReader(Limits())
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_ASKED = [(":method", "POST"), (":scheme", "https"), (":authority", "control.example"), (":path", "/v1/x?y=1")]
_WEBSOCKET = [(":method", "CONNECT"), (":protocol", "websocket"), *_ASKED[1:]]


def _header_list(raw: bytes) -> None:
    """A list that is accepted has a line for each field; llhttp and we read what the pseudo-header fields say."""
    try:
        fields = [(bytes(name), bytes(value)) for name, value in Decoder().decode(raw, raw=True)]
    except (HPACKError, ValueError):
        return
    with contextlib.suppress(Fault):
        trailers_of(fields)
    said = dict(fields)
    written = as_http1(fields, ended=said.get(b":method") != b"CONNECT", websocket_key=b"a2V5")
    head = _REQUESTS.read(written)
    assert (head.target, head.authority) == (said[b":path"], said[b":authority"].lower())
    assert head.method == said[b":method"] or (head.method, head.upgrade) == (b"GET", b"websocket")
    assert written.count(b"\r\n") <= len(fields) + 5


def _budget(raw: bytes) -> None:
    """Whole or byte by byte, the same frames are counted."""
    assert _spent([_PREFACE + raw]) == _spent([_PREFACE, *[raw[at : at + 1] for at in range(len(raw))]])


def _spent(pieces: list[bytes]) -> tuple[str, float, float, bool]:
    budget, flood = Budget(Http2Settings(), 32 << 10, range(1 << 31), 0.0), ""
    try:
        for piece in pieces:
            budget.read(piece, 0.0)
    except Overrun as overrun:
        flood = overrun.flood.value
    return flood, budget._control._left, budget._resets._left, budget.in_header_block


def _connection(raw: bytes) -> None:
    """What is forwarded of any bytes is what was authorised."""
    runner, gateway = _driven()
    settings = SettingsFrame(0).serialize()
    check_authorised(
        runner.run(gateway.feed([_PREFACE + settings, raw[: len(raw) // 2], raw[len(raw) // 2 :]], HTTP_2))
    )


@cache
def _driven() -> tuple[asyncio.Runner, DrivenGateway]:
    runner, folder = asyncio.Runner(), Path(tempfile.mkdtemp(prefix="fuzz-http2-"))
    return runner, runner.run(driven_gateway(folder, upgrades=("websocket",)).__aenter__())


def _guarded(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A refusal is an answer; anything else that is raised is a defect."""

    def run(raw: bytes) -> None:
        with contextlib.suppress(Fault):
            target(raw)

    return run


def _raw(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def _request(*more: tuple[str, str], flags: tuple[str, ...] = ("END_HEADERS",)) -> HeadersFrame:
    return HeadersFrame(1, Encoder().encode([*_ASKED, *more]), flags=list(flags))


EXACT: dict[str, Callable[[bytes], None]] = {"header_list": _header_list, "budget": _budget, "connection": _connection}
TARGETS = {name: _guarded(target) for name, target in EXACT.items()}
_TRAILERS = HeadersFrame(1, Encoder().encode([("a", "b")]), flags=["END_HEADERS", "END_STREAM"])
_FRAMES = [
    _raw(_request(flags=("END_HEADERS", "END_STREAM"))),
    _raw(_request(("content-length", "3")), DataFrame(1, b"abc", flags=["END_STREAM"])),
    _raw(_request(), DataFrame(1, b"abc"), _TRAILERS),
    _raw(_request(flags=("END_STREAM",)), ContinuationFrame(1, b"\x00\x01a\x01b", flags=["END_HEADERS"])),
    _raw(_request(), RstStreamFrame(1, error_code=8), WindowUpdateFrame(0, window_increment=5)),
    _raw(SettingsFrame(0, settings={4: 0, 1: 0}), PriorityFrame(3, depends_on=1), _request(("cookie", "a"))),
]
SEEDS = {
    "header_list": [
        Encoder().encode([*_ASKED, ("accept", "*/*"), ("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2")]),
        Encoder().encode([*_ASKED, ("host", "control.example"), ("x-forwarded-for", "1"), ("expect", "100-continue")]),
        Encoder().encode([*_WEBSOCKET, ("sec-websocket-version", "13")]),
    ],
    "budget": _FRAMES,
    "connection": _FRAMES,
}

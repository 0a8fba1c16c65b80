"""What one client's HTTP/2 connection may cost: counted frame by frame, before anything is kept of a frame.

Laws held here:
- a frame's first nine bytes decide whether it is taken at all: one that is too long, a header block that grows too
  large or comes in too many pieces, is refused before its bytes are buffered (CONTINUATION floods);
- what costs us and means nothing (SETTINGS, PING, PRIORITY, empty DATA, unknown frames, frames for streams that are
  gone) has a budget; so has WINDOW_UPDATE, earned again by the DATA that we send;
- a reset costs the same whoever sent it: the client (CVE-2023-44487), or we, because the client provoked it
  (CVE-2025-8671, MadeYouReset).

A budget is a bucket (`foundation.bucket`) that fills at a rate per second. Pure: the time is given.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from foundation.bucket import Bucket
from foundation.fields import Fields
from foundation.tls import HTTP_1_1, HTTP_2

MAX_FRAME_BYTES = 16 << 10  # what we advertise, and the least that RFC 9113 §4.2 allows
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 §3.4
_HEADER_BYTES = 9
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_STREAM = (1 << 31) - 1  # a stream's bits beside the one that is reserved
_LEAST_WINDOW, _MOST_WINDOW = 64 << 10, 64 << 20
_SETTINGS_COST = 10  # each may touch every stream
_DATA_EARNS = 2  # WINDOW_UPDATEs that a DATA frame of ours may be answered with: for its stream and for the connection


class Flood(StrEnum):
    """Which budget a client overran."""

    RESETS = "resets"
    CONTROL = "control_frames"
    HEADERS = "header_bytes"
    CONTINUATIONS = "continuations"
    FRAME = "frame_bytes"
    STREAMS = "streams"


class Overrun(Exception):
    """A budget is used up: the connection ends with ENHANCE_YOUR_CALM."""

    def __init__(self, flood: Flood) -> None:
        super().__init__(flood.value)
        self.flood = flood


@dataclass(frozen=True, slots=True)
class Http2Settings:
    """Section `[gateway.http2]`. Bounds are per connection, `streams_per_identity` per identity and worker; sizes in
    bytes.

    enabled: whether HTTP/2 is offered by ALPN. streams: those open at once; undecided: of them, those that wait for a
    decision. window: of a request's body, what is kept before its upstream takes it; connection_window: the same for
    all streams of a connection. buffer: of a response's body, what is kept for a client that does not read.
    resets_per_second: streams that end with RST_STREAM, by the client or because of it. control_frames_per_second:
    frames that cost and mean nothing. continuations: CONTINUATION frames of one header block.
    """

    enabled: bool = True
    streams: int = 100
    undecided: int = 100
    streams_per_identity: int = 1_000
    window: int = 64 << 10
    connection_window: int = 1 << 20
    buffer: int = 64 << 10
    resets_per_second: int = 50
    control_frames_per_second: int = 100
    continuations: int = 8

    @classmethod
    def parse(cls, fields: Fields) -> Http2Settings:
        settings = cls(
            enabled=fields.flag("enabled", True),
            streams=fields.integer("streams", 100, least=1, most=10_000),
            undecided=fields.integer("undecided", 100, least=1, most=10_000),
            streams_per_identity=fields.integer("streams_per_identity", 1_000, least=1, most=1 << 20),
            window=_window(fields, "window", "64KiB"),
            connection_window=_window(fields, "connection_window", "1MiB"),
            buffer=_window(fields, "buffer", "64KiB"),
            resets_per_second=fields.integer("resets_per_second", 50, least=1, most=1 << 20),
            control_frames_per_second=fields.integer("control_frames_per_second", 100, least=10, most=1 << 20),
            continuations=fields.integer("continuations", 8, most=64),
        )
        fields.finish()
        return settings

    @property
    def protocols(self) -> tuple[str, ...]:
        """What the data plane's listener offers by ALPN, the best first."""
        return (HTTP_2, *HTTP_1_1) if self.enabled else HTTP_1_1


def _window(fields: Fields, name: str, default: str) -> int:
    size = fields.size(name, default)
    if not _LEAST_WINDOW <= size <= _MOST_WINDOW:
        raise fields.fault(name, "expected 64KiB to 64MiB")
    return size


class Budget:
    """One connection's. `read` and `reset` raise `Overrun`."""

    __slots__ = (
        "_block_bytes",
        "_block_frames",
        "_control",
        "_highest",
        "_kind",
        "_left",
        "_live",
        "_most_block",
        "_part",
        "_preface",
        "_resets",
        "_settings",
    )

    def __init__(self, settings: Http2Settings, block_bytes: int, live: Container[int], now: float) -> None:
        """`block_bytes` bounds an encoded header block. `live` holds the ids of the streams that are not over."""
        self._settings = settings
        self._most_block = block_bytes
        self._live = live
        self._control = Bucket(settings.control_frames_per_second, now)
        self._resets = Bucket(settings.resets_per_second, now)
        self._preface = _PREFACE  # what has not come of it
        self._left = 0  # bytes until the next frame begins
        self._part = b""  # of a frame's first nine bytes
        self._block_bytes = -1  # of the header block that has begun; negative: none has
        self._block_frames = 0
        self._kind = _SETTINGS  # of the last frame
        self._highest = 0  # stream that the client has opened

    def read(self, data: bytes, now: float) -> None:
        """Count the frames that begin in `data`."""
        if self._preface:
            begun = data[: len(self._preface)]
            if not self._preface.startswith(begun):
                return  # no HTTP/2 at all: h2 says so
            self._preface = self._preface[len(begun) :]
            data = data[len(begun) :]
        if self._part:
            data = self._part + data
        position, size, known = self._left, len(data), self._highest
        while position + _HEADER_BYTES <= size:
            length = int.from_bytes(data[position : position + 3], "big")
            stream = int.from_bytes(data[position + 5 : position + 9], "big") & _STREAM
            self._meet(data[position + 3], data[position + 4], length, stream, known, now)
            position += _HEADER_BYTES + length
        self._left = max(0, position - size)
        self._part = data[position:]

    def reset(self, now: float) -> None:
        """A stream ended with RST_STREAM, by the client or because of it."""
        if not self._resets.spend(1, now):
            raise Overrun(Flood.RESETS)

    def sent_data(self, frames: int) -> None:
        """So many DATA frames went to the client."""
        self._control.earn(frames * _DATA_EARNS)

    @property
    def in_header_block(self) -> bool:
        """Whether a header block has begun and has not come whole."""
        return self._block_bytes >= 0 or (self._left > 0 and self._kind in {_HEADERS, _CONTINUATION})

    def _meet(self, kind: int, flags: int, length: int, stream: int, known: int, now: float) -> None:
        if length > MAX_FRAME_BYTES:
            raise Overrun(Flood.FRAME)
        cost = 0
        self._kind = kind
        if kind == _DATA:
            cost = self._cost_of_data(flags, length, stream, known)
        elif kind in {_HEADERS, _CONTINUATION}:
            cost = self._grow_block(kind, flags, length, stream, known)
        elif kind == _RST_STREAM:
            self.reset(now)
        else:
            cost = _SETTINGS_COST if kind == _SETTINGS else 1
        if cost and not self._control.spend(cost, now):
            raise Overrun(Flood.CONTROL)

    def _cost_of_data(self, flags: int, length: int, stream: int, known: int) -> int:
        """DATA costs when it carries nothing, or may be padding alone, or is for a stream that is over."""
        empty = length == 0 and not flags & _END_STREAM
        return 1 if empty or (flags & _PADDED and length <= 256) or self._is_over(stream, known) else 0

    def _grow_block(self, kind: int, flags: int, length: int, stream: int, known: int) -> int:
        cost = 0
        if kind == _HEADERS:
            cost = 1 if self._is_over(stream, known) else 0
            self._block_bytes, self._block_frames = 0, 0
            self._highest = max(self._highest, stream)
        else:
            cost = 1
            self._block_frames += 1
        self._block_bytes += length
        if self._block_frames > self._settings.continuations:
            raise Overrun(Flood.CONTINUATIONS)
        if self._block_bytes > self._most_block:
            raise Overrun(Flood.HEADERS)
        if flags & _END_HEADERS:
            self._block_bytes = -1
        return cost

    def _is_over(self, stream: int, known: int) -> bool:
        """Whether `stream`, opened before these bytes came, is over."""
        return stream <= known and stream not in self._live

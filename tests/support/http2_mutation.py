"""Requests over HTTP/2 that would be something else once they are written as HTTP/1.1: a deterministic mutator of
header lists and frames (the attacks of a downgrade)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame

from tests.support.mutation import BYTES, HOST, INNER, LINES, PIECES, Chance

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = list[tuple[bytes, bytes]]
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"POST /x HTTP/1.1\r\nA: b\r\n\r\nGET")
_PATHS = (b"/a", b"/a?b=c", b"/a/%61", b"*", b"", b"a", b"http://other.example/x", b"/a HTTP/1.1\r\nHost: b\r\n\r\n")
_SCHEMES = (b"https", b"https", b"https", b"http", b"", b"https\r\nA: b")
_AUTHORITIES = (HOST, HOST, HOST, b"other.example", b"", b"a@b", HOST + b"\r\nX: y", HOST + b":443")
_BODIES = (b"", b"hello", INNER, b"0\r\n\r\n" + INNER, b"5\r\nhello\r\n0\r\n\r\n")


def http2_mutants(seed: int) -> Iterator[bytes]:
    """Whole connections of one request each, without end; the same ones for the same `seed`."""
    chance = random.Random(seed)
    while True:
        yield PREFACE + SettingsFrame(0).serialize() + _request(chance)


def _request(chance: Chance) -> bytes:
    fields, body = _fields(chance), chance.choice(_BODIES)
    if chance.random() < 0.5:
        fields.append((b"content-length", b"%d" % (len(body) if chance.random() < 0.7 else chance.randrange(60))))
    for _ in range(chance.choice((0, 0, 1, 2))):
        _change(chance, fields)
    parts = _cut(chance, body) if body else [b""]
    has_body = body or chance.random() < 0.3
    frames = _headers(chance, fields, last=not has_body)
    if has_body:
        frames += [DataFrame(1, data=part) for part in parts]
        if chance.random() < 0.2:
            frames += _headers(chance, [(b"x-trailer", b"1"), *_line(chance)], last=True)
        else:
            frames[-1].flags.add("END_STREAM")
    return b"".join(frame.serialize() for frame in frames)


def _fields(chance: Chance) -> Fields:
    odd = chance.random() < 0.2
    fields = [
        (b":method", chance.choice(_METHODS if odd else _METHODS[:5])),
        (b":path", chance.choice(_PATHS if odd else _PATHS[:3])),
        (b":scheme", chance.choice(_SCHEMES if odd else _SCHEMES[:1])),
        (b":authority", chance.choice(_AUTHORITIES if odd else _AUTHORITIES[:1])),
        (b"accept", b"*/*"),
    ]
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        fields += _line(chance)
    return fields


def _line(chance: Chance) -> Fields:
    """A header line of an attack on HTTP/1.1, as a field."""
    name, _, value = chance.choice(LINES).partition(b":")
    return [(name.lower() if chance.random() < 0.9 else name, value.strip() if chance.random() < 0.8 else value)]


def _change(chance: Chance, fields: Fields) -> None:
    at = chance.randrange(len(fields))
    name, value = fields[at]
    other = chance.choice(chance.choice((BYTES, PIECES)))
    place = chance.randrange(len(value) + 1)
    changes = (
        (name, value[:place] + other + value[place:]),
        (name + other, value),
        (other + name, value),
        (name.upper(), value),
        (b":" + name, value),
    )
    kind = chance.randrange(len(changes) + 3)
    if kind < len(changes):
        fields[at] = changes[kind]
    elif kind == len(changes):
        fields.insert(chance.randrange(len(fields) + 1), (name, value))
    elif kind == len(changes) + 1:
        del fields[at]
    else:
        fields.append(fields.pop(at))


def _headers(chance: Chance, fields: Fields, *, last: bool) -> list[Frame]:
    block = Encoder().encode(fields, huffman=chance.random() < 0.5)
    parts = _cut(chance, block) if block else [b""]
    frames: list[Frame] = [HeadersFrame(1, data=parts[0], flags=["END_STREAM"] if last else [])]
    frames += [ContinuationFrame(1, data=part) for part in parts[1:]]
    frames[-1].flags.add("END_HEADERS")
    return frames


def _cut(chance: Chance, data: bytes) -> list[bytes]:
    places = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(chance.choice((0, 0, 1, 3))))})
    return [data[start:end] for start, end in itertools.pairwise(places)]

"""Requests, whole and broken, and what an attacker makes of them: a deterministic mutator over seeds.

`SEEDS` are well-formed and near misses alike; a mutant is a seed with one to five changes of the kinds that framing
bugs came from: bytes that parsers treat differently, header lines that declare another length, sizes that are nearly
numbers, lines doubled, moved, folded and cut, and two messages joined.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

HOST = b"control.example"
INNER = b"GET /smuggled HTTP/1.1\r\nHost: control.example\r\n\r\n"


def message(method: bytes, target: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    """A request with a Host and these lines."""
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: " + HOST, *lines]) + b"\r\n\r\n" + body


def chunked(*payloads: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body; `trailers` are whole lines."""
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in payloads) + b"0\r\n" + trailers + b"\r\n"


_CHUNKED = b"Transfer-Encoding: chunked"
_SHAPES = [
    message(b"GET", b"/a"),
    message(b"GET", b"/a/b?c=d&e=%66", b"Accept: */*", b"X-A: 1", b"x-b:  two words "),
    message(b"HEAD", b"/a", b"Connection: keep-alive"),
    message(b"DELETE", b"/a/b", b"Content-Length: 0"),
    message(b"POST", b"/a", b"Content-Length: 5", body=b"hello"),
    message(b"POST", b"/a", b"Content-Type: text/plain", b"Content-Length: %d" % len(INNER), b"X-A: b", body=INNER),
    message(b"PUT", b"/a", _CHUNKED, body=chunked(b"hello", b" world")),
    message(b"PATCH", b"/a", _CHUNKED, b"X-A: b", body=chunked(INNER)),
    message(b"POST", b"/a", _CHUNKED, b"Trailer: X-T", body=chunked(b"x" * 30, trailers=b"X-T: 1\r\nX-U: 2\r\n")),
    message(b"POST", b"/a", b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
    message(b"POST", b"/a", b"Connection: close", b"Content-Length: 3", body=b"abc"),
    message(b"GET", b"/ws", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    message(b"POST", b"/a", b"TE: trailers", b"Connection: TE, X-A", b"X-A: 1", _CHUNKED, body=chunked(b"0\r\n\r\n")),
    message(b"GET", b"/a", b"Cookie: a=b", b"Authorization: Bearer x", b"Via: 1.0 x", b"Forwarded: for=1"),
]
_JOINED = [
    message(b"POST", b"/1", b"Content-Length: 5", body=b"hello") + message(b"GET", b"/2"),
    message(b"POST", b"/1", _CHUNKED, body=chunked(b"hello")) + message(b"DELETE", b"/2") + message(b"GET", b"/3"),
    message(b"GET", b"/1") + message(b"POST", b"/2", b"Content-Length: 0") + message(b"HEAD", b"/3"),
]
_NEAR_MISSES = [
    message(b"POST", b"/a", b"Content-Length: 6", _CHUNKED, body=b"0\r\n\r\n" + INNER),
    message(b"POST", b"/a", _CHUNKED, b"Content-Length: 4", body=chunked(INNER)),
    message(b"POST", b"/a", b"Transfer_Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + INNER),
    message(b"POST", b"/a", b"Content_Length: 0", b"Content-Length: 49", body=INNER),
    message(b"POST", b"/a", b"X: y\r\n Transfer-Encoding: chunked", b"Content-Length: 49", body=INNER),
    b"GET http://control.example/a HTTP/1.1\r\nHost: control.example\r\n\r\n",
    b"GET /a HTTP/1.0\r\nHost: control.example\r\nConnection: keep-alive\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: control.example\r\n\r\n",
    b"CONNECT control.example:443 HTTP/1.1\r\nHost: control.example\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
SEEDS = (*_SHAPES, *_JOINED, *_NEAR_MISSES)

BYTES = [bytes([each]) for each in b"\r\n\0\t \x0b\x0c\x7f\x80\xa0\xff:;,\"'\\/_-.#?%&=+*()<>@[]{}|~0159afxAF"]
PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\r\n ", b"\r\n\t", b" \r\n", b"\0", b"  "),
    *(b"0\r\n\r\n", b"0\r\n", b";a=b", b"; a", b'"', b"0x", b"+", b"-", b"00000000000000000", b"ffffffffffffffff"),
    *(b"%2f", b"%2e%2e", b"//", b"/../", b"/./", b";x=y", b"?", b"#", b"%00", b"%0d%0a", b"\xc0\xaf", b"\xe2\x80\xa8"),
    *(b" HTTP/1.1", b" HTTP/1.0", b"GET ", b"POST ", b"chunked", b", chunked", b"chunked, ", b"identity", INNER),
]
LINES = [
    *(
        b"Content-Length: 0",
        b"Content-Length: 5",
        b"content-length: 49",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
    ),
    *(b"Content-Length: 05", b"Content-Length: 5 ", b"Content-Length : 5", b"Content-Length:", b"Content-Length: 1e1"),
    *(
        b"Content_Length: 5",
        b"Content.Length: 5",
        b"Content-Length\t: 5",
        b"Content-Length: 0x5",
        b"Content-Length: -0",
    ),
    *(b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding: identity"),
    *(b"Transfer-Encoding : chunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding: chunked\t"),
    *(b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: x"),
    *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked;q=1", b"Transfer_Encoding: chunked"),
    *(b"Transfer-Encoding:", b"Transfer-Encoding:\r\n chunked", b" Transfer-Encoding: chunked", b"TE: chunked"),
    *(
        b"Host: other.example",
        b"Host: control.example",
        b"Host:",
        b"Host: a, b",
        b"Host: a@b",
        b"Host: control.example:",
    ),
    *(b"Host: control.example:80", b"Host: CONTROL.example", b"Host: control.example.", b"Host: a b", b"HOST: [::1]"),
    *(b"Connection: close", b"Connection: keep-alive", b"Connection: Content-Length", b"Connection: Transfer-Encoding"),
    *(b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"),
    *(b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Expect: 100-continue", b"Expect: x", b"Expect: 100-Continue, x"),
    *(b"Trailer: Content-Length", b"Keep-Alive: timeout=1", b"X-HTTP-Method-Override: DELETE", b"X-Original-URL: /x"),
    *(b"X-A: \xff\xfe", b"X-A: a\rb", b"X-A: a\nContent-Length: 5", b": empty", b"no colon", b"X A: b", b"\tX: folded"),
]

Chance = random.Random
_JOIN = 0.12  # how often two messages are joined
Change = Callable[[Chance, bytes], bytes]


def mutants(seed: int, seeds: Sequence[bytes] = SEEDS) -> Iterator[bytes]:
    """Broken messages without end; the same ones for the same `seed`."""
    chance = random.Random(seed)
    while True:
        yield _mutate(chance, seeds)


def _mutate(chance: Chance, seeds: Sequence[bytes]) -> bytes:
    raw = chance.choice(seeds)
    if chance.random() < _JOIN:
        raw += chance.choice(seeds)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
        raw = chance.choice(_CHANGES)(chance, raw)
    return raw[:8192]


def pieces(chance: Chance, raw: bytes) -> list[bytes]:
    """`raw` as it might come from a socket: whole, in a few parts, or byte by byte."""
    cuts = chance.choice((0, 0, 1, 2, 5, len(raw)))
    places = sorted({0, len(raw), *(chance.randrange(len(raw) + 1) for _ in range(cuts))})
    return [raw[start:end] for start, end in itertools.pairwise(places)]


def _place(chance: Chance, raw: bytes) -> int:
    """Somewhere; more often beside a line's end, a colon or a space, where parsers decide."""
    marks = [index for index, byte in enumerate(raw) if byte in b"\r\n: ;,"]
    if marks and chance.random() < 0.6:
        return min(len(raw), chance.choice(marks) + chance.randrange(2))
    return chance.randrange(len(raw) + 1)


def _insert(chance: Chance, raw: bytes) -> bytes:
    at = _place(chance, raw)
    return raw[:at] + chance.choice(chance.choice((BYTES, PIECES))) + raw[at:]


def _replace(chance: Chance, raw: bytes) -> bytes:
    at = _place(chance, raw)
    return raw[:at] + chance.choice(BYTES) + raw[at + 1 :]


def _remove(chance: Chance, raw: bytes) -> bytes:
    at = _place(chance, raw)
    return raw[:at] + raw[at + chance.choice((1, 1, 1, 2, 4, 16)) :]


def _line(chance: Chance, raw: bytes) -> bytes:
    """A header line more, in a head that is there or at its end."""
    heads = raw.split(b"\r\n\r\n")
    which = chance.randrange(len(heads))
    lines = heads[which].split(b"\r\n")
    lines.insert(chance.randrange(1, len(lines) + 1), chance.choice(LINES))
    heads[which] = b"\r\n".join(lines)
    return b"\r\n\r\n".join(heads)


def _shuffle(chance: Chance, raw: bytes) -> bytes:
    """A line doubled, moved or left out."""
    lines = raw.split(b"\r\n")
    line = lines.pop(chance.randrange(len(lines)))
    for _ in range(chance.randrange(3)):
        lines.insert(chance.randrange(len(lines) + 1), line)
    return b"\r\n".join(lines)


def _number(chance: Chance, raw: bytes) -> bytes:
    """A number that is a little other, or written in another way."""
    places = [index for index, byte in enumerate(raw) if byte in b"0123456789"]
    if not places:
        return raw
    at = chance.choice(places)
    other = chance.choice(
        (b"0", b"1", b"9", b"00", b"05", b"+5", b"0x5", b"5 ", b" 5", b"a", b"5;x", b"99999999999999999999")
    )
    return raw[:at] + other + raw[at + 1 :]


def _case(chance: Chance, raw: bytes) -> bytes:
    """A line in another case, or with its hyphens as underscores."""
    lines = raw.split(b"\r\n")
    at = chance.randrange(len(lines))
    name, colon, value = lines[at].partition(b":")
    other = chance.choice(
        (name.upper(), name.lower(), name.swapcase(), name.replace(b"-", b"_"), name + b" ", b" " + name)
    )
    lines[at] = other + colon + chance.choice((value, value.upper(), value.strip(), value + b" "))
    return b"\r\n".join(lines)


def _ends(chance: Chance, raw: bytes) -> bytes:
    """One line end, or all, as another parser might take them."""
    other = chance.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b" \r\n"))
    return raw.replace(b"\r\n", other) if chance.random() < 0.2 else raw.replace(b"\r\n", other, 1)


def _cut(chance: Chance, raw: bytes) -> bytes:
    return raw[: _place(chance, raw)]


_CHANGES: tuple[Change, ...] = (
    *(_insert, _insert, _replace, _replace, _remove, _line, _line, _line),
    *(_shuffle, _number, _number, _case, _ends, _cut),
)

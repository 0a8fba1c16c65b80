"""Bytes to HTTP/1.1 messages (RFC 9112), refusing whatever two parsers may read in two ways.

llhttp reads each head, with all its leniencies off, and is handed exactly one head. What it accepts and RFC 9112 or
a neighbour of ours may not is refused here, over the raw bytes:
- line ends are CRLF alone; no folded lines, no control bytes; the request line is `METHOD SP target SP HTTP/1.1`;
- one length: Content-Length once and in digits, or `Transfer-Encoding: chunked` alone, never both; none for GET, HEAD;
- one Host, without user information or a dot at its end;
- chunks have a plain size in hex and no extensions; which trailers pass, `gateway.proxy.headers` judges.

A header section that was read is remembered, within bounds and without those that carry secrets, or that never come
again (a trace, a WebSocket's key): clients send the same one again and again, and reading it is a good part of what a
request costs. What is remembered is a pure function of the very same bytes.

Requests are refused with their own reasons, responses with `UPSTREAM_INVALID`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import httptools

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy import headers
from gateway.proxy.headers import Field

K = TypeVar("K")
V = TypeVar("V")
HEAD_END = b"\r\n\r\n"
CHUNKED = -1  # a length that the chunks tell
UNTIL_CLOSE = -2  # a response's length that the end of the connection tells
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"})
MAX_CHUNK_LINE = 18  # sixteen hex digits and CRLF
REMEMBERED = 1024  # sections of requests, by each reader
REMEMBERED_ANSWERS = 128  # most bear the time (RFC 9110 §6.6.1): they come again for a second, then never
REMEMBERED_BYTES = 1024  # of the longest of them
_BODILESS = frozenset({b"GET", b"HEAD"})
# Request lines of which llhttp and RFC 3986 have one opinion; all others are read with their section.
_PLAIN_LINE = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9._~!$&'()*+,=:@/?%-]*) HTTP/1\.1\r\n")
_SECRETS = frozenset({b"authorization", b"cookie", b"set-cookie"})
_PLAIN = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
# RFC 9110 §7.8: a name, and it may be a version.
_PROTOCOL = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}(?:/[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64})?")
_HOST = re.compile(rb"(?P<name>[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?|\[[0-9a-f:.]{2,45}\])(?::[1-9][0-9]{0,4})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one head."""

    head_bytes: int = 16 << 10
    fields: int = 100
    target_bytes: int = 8 << 10


@dataclass(slots=True)
class RequestHead:
    """A request's head. `host` is in lower case, `authority` with its port as sent; `length` is that of the body in
    bytes, or `CHUNKED`; `upgrade` is the protocol asked for, in lower case, or empty; `fields` are those that pass;
    `nominated` is what `Connection` says; `takes_trailers`: whoever asks does not discard them (RFC 9110 §10.1.4)."""

    method: bytes
    target: bytes
    host: bytes
    authority: bytes
    length: int
    upgrade: bytes
    expects_continue: bool
    keep_alive: bool
    traceparent: bytes
    tracestate: bytes
    fields: list[Field]
    lines: bytes  # `fields`, as they are written
    nominated: Sequence[bytes]
    takes_trailers: bool


@dataclass(slots=True)
class ResponseHead:
    """A response's head. `length` is that of the body in bytes, `CHUNKED` or `UNTIL_CLOSE`; `declared` the
    Content-Length that the response to a HEAD, or a 304, tells of the body that it leaves out; `nominated` is what
    `Connection` says. Shared by all that answer with the same bytes: nobody changes it."""

    status: int
    length: int
    declared: int | None
    upgrade: bytes
    keep_alive: bool
    fields: list[Field]
    lines: bytes  # `fields`, as they are written
    nominated: Sequence[bytes]


class _Memory(dict[K, V]):
    """What was read of small heads, `most` of them at most; the oldest gives way."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: V) -> None:
        if len(self) >= self._most:
            del self[next(iter(self))]
        self[key] = value


class RequestReader:
    """Reads requests' heads, one call each."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sections: _Memory[tuple[bytes, bytes], _Section] = _Memory(REMEMBERED)

    def read(self, raw: bytes) -> RequestHead:
        """The head in `raw`, which ends with its empty line. Raises `Fault`."""
        _check_bounds(raw, self._limits)
        line = _PLAIN_LINE.match(raw)
        if line is None or len(raw) > REMEMBERED_BYTES:
            return self._read(raw)
        method, target = line.groups()
        key = method, raw[line.end() :]
        section = self._sections.get(key)
        if section is not None:
            return RequestHead(method, target, *section)
        head = self._read(raw)
        if not head.traceparent and not head.upgrade and _SECRETS.isdisjoint(name.lower() for name, _ in head.fields):
            self._sections.keep(key, _section(head))
        return head

    @property
    def remembered(self) -> int:
        """How many sections are remembered."""
        return len(self._sections)

    def _read(self, raw: bytes) -> RequestHead:
        seen = _Seen()
        parser = httptools.HttpRequestParser(seen)
        _parse(parser, raw, Reason.REQUEST_MALFORMED)
        method: bytes = parser.get_method()
        _check_request_line(raw, method, seen.target)
        _check_raw(raw, Reason.REQUEST_AMBIGUOUS)
        if method not in METHODS:
            raise Fault(Reason.METHOD_UNSUPPORTED, field="method")
        if len(seen.fields) > self._limits.fields:
            raise Fault(Reason.HEADERS_TOO_LARGE, f"at most {self._limits.fields} fields")
        return _request_head(method, seen)

    def check_partial(self, raw: bytes) -> None:
        """Refuse a head that is not whole yet and is too large already."""
        _check_bounds(raw, self._limits)


class ResponseReader:
    """Reads responses' heads, one call each."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._heads: _Memory[tuple[bytes, bool], ResponseHead] = _Memory(REMEMBERED_ANSWERS)

    def read(self, raw: bytes, method: bytes) -> ResponseHead:
        """The head in `raw`, answering a request of `method`. Raises `Fault(UPSTREAM_INVALID)`."""
        key = raw, method == b"HEAD"
        head = self._heads.get(key)
        if head is None:
            head = self._read(raw, method)
            if len(raw) <= REMEMBERED_BYTES and _SECRETS.isdisjoint(name.lower() for name, _ in head.fields):
                self._heads.keep(key, head)
        return head

    @property
    def remembered(self) -> int:
        """How many heads are remembered."""
        return len(self._heads)

    def _read(self, raw: bytes, method: bytes) -> ResponseHead:
        self.check_partial(raw)
        seen = _Seen()
        parser = httptools.HttpResponseParser(seen)
        _parse(parser, raw, Reason.UPSTREAM_INVALID)
        _check_raw(raw, Reason.UPSTREAM_INVALID)
        if not raw.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or len(seen.fields) > self._limits.fields:
            raise Fault(Reason.UPSTREAM_INVALID, "not a response of HTTP/1.1")
        try:
            return _response_head(parser.get_status_code(), raw.startswith(b"HTTP/1.1 "), seen.fields, method)
        except Fault as fault:
            raise Fault(Reason.UPSTREAM_INVALID, fault.detail, field=fault.field) from None

    def check_partial(self, raw: bytes) -> None:
        if len(raw) > self._limits.head_bytes:
            raise Fault(Reason.UPSTREAM_INVALID, "the response's head is too large")


class Piece(NamedTuple):
    """What was read of a body: payload; once `done` the bytes behind the body's end, and the trailers that pass."""

    payload: bytes
    rest: bytes
    done: bool
    trailers: Sequence[Field] = ()


class Body(Protocol):
    """Reads one body. `feed` raises `Fault` on bad framing; `end` says whether the connection's end may end it."""

    done: bool

    def feed(self, data: bytes) -> Piece: ...

    def end(self) -> bool: ...


class LengthBody:
    """A body of `length` bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> Piece:
        size = len(data)
        if size < self._left:
            self._left -= size
            return Piece(data, b"", False)
        payload, rest = (data, b"") if size == self._left else (data[: self._left], data[self._left :])
        self._left, self.done = 0, True
        return Piece(payload, rest, True)

    def end(self) -> bool:
        return self.done


class UntilCloseBody:
    """A response's body that the end of the connection ends (RFC 9112 §6.3, item 8)."""

    done = False

    def feed(self, data: bytes) -> Piece:
        return Piece(data, b"", False)

    def end(self) -> bool:
        return True


class ChunkedBody:
    """A chunked body (RFC 9112 §7.1). Sizes are hex digits and nothing else: extensions are refused, for parsers
    disagree on where they end. `nominated` is what the head's `Connection` says."""

    def __init__(self, malformed: Reason, nominated: Collection[bytes] = ()) -> None:
        self._malformed = malformed
        self._nominated = nominated
        self._held = b""  # part of a size line, of a chunk's CRLF, or of the trailers
        self._left = 0  # of the present chunk's data
        self._between = False  # the CRLF behind a chunk's data comes next
        self._trailers = False
        self.done = False

    def feed(self, data: bytes) -> Piece:
        payload: list[bytes] = []
        data, position = self._held + data if self._held else data, 0
        self._held = b""
        while not self._trailers:
            if self._left:
                taken = data[position : position + self._left]
                payload.append(taken)
                position += len(taken)
                self._left -= len(taken)
                if self._left:
                    return Piece(b"".join(payload), b"", False)
                self._between = True
            line_end = self._next_size(data, position)
            if line_end < 0:
                self._held = data[position:]
                return Piece(b"".join(payload), b"", False)
            position = line_end
        return self._read_trailers(b"".join(payload), data[position:])

    def end(self) -> bool:
        return self.done

    def _next_size(self, data: bytes, position: int) -> int:
        """Reads one size line; the position behind it, or -1 when it is not whole."""
        if self._between:
            if len(data) < position + 2:
                return self._incomplete(b"\r\n".startswith(data[position:]))
            if data[position : position + 2] != b"\r\n":
                raise self._fault("a chunk does not end with CRLF")
            position += 2
        end = data.find(b"\r\n", position, position + MAX_CHUNK_LINE)
        if end < 0:
            return self._incomplete(len(data) - position < MAX_CHUNK_LINE)
        if not _CHUNK_SIZE.fullmatch(data, position, end):
            raise self._fault("a chunk's size is not hex digits alone")
        self._between = False
        self._left = int(data[position:end], 16)
        self._trailers = self._left == 0
        return end + 2

    def _read_trailers(self, payload: bytes, data: bytes) -> Piece:
        if data.startswith(b"\r\n"):
            self.done = True
            return Piece(payload, data[2:], True)
        end = data.find(HEAD_END)
        size = end if end >= 0 else len(data)
        if size > headers.MAX_TRAILER_BYTES:
            raise self._fault("the trailers are too large")
        if end < 0:
            self._held = data
            return Piece(payload, b"", False)
        trailers = self._judge(data[:end])
        self.done = True
        return Piece(payload, data[end + 4 :], True, trailers)

    def _judge(self, raw: bytes) -> list[Field]:
        _check_raw(raw + HEAD_END, self._malformed)
        fields = []
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if not colon:
                raise self._fault("a trailer is not a field")
            fields.append((name, value))
        return headers.trailers(fields, self._nominated, self._malformed)

    def _incomplete(self, possible: bool) -> int:
        if not possible:
            raise self._fault("a chunk's size is not hex digits alone")
        return -1

    def _fault(self, detail: str) -> Fault:
        return Fault(self._malformed, detail, field="body")


def body_of(length: int, malformed: Reason, nominated: Collection[bytes] = ()) -> Body:
    """What reads a body of this length (a number of bytes, `CHUNKED` or `UNTIL_CLOSE`), as `ChunkedBody` has it."""
    if length >= 0:
        return LengthBody(length)
    return ChunkedBody(malformed, nominated) if length == CHUNKED else UntilCloseBody()


class _Parser(Protocol):
    """httptools' parsers."""

    def feed_data(self, data: bytes) -> None: ...


class _Seen:
    """What llhttp tells of one head."""

    __slots__ = ("fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[Field] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def _parse(parser: _Parser, raw: bytes, malformed: Reason) -> None:
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # llhttp's way to say that the head asks for another protocol; it was read whole
    except httptools.HttpParserError as error:
        raise Fault(malformed, "not HTTP/1.1", internal=str(error)) from None


def _check_bounds(raw: bytes, limits: Limits) -> None:
    if len(raw) > limits.target_bytes:
        line_end = raw.find(b"\r\n")
        if line_end < 0 or line_end > limits.target_bytes + 32:
            raise Fault(Reason.URI_TOO_LONG, f"at most {limits.target_bytes} bytes")
    if len(raw) > limits.head_bytes:
        raise Fault(Reason.HEADERS_TOO_LARGE, f"at most {limits.head_bytes} bytes")


def _check_request_line(raw: bytes, method: bytes, target: bytes) -> None:
    """llhttp takes several spaces, HTTP/0.9, HTTP/2.0 and RTSP; RFC 9112 §3 knows one form."""
    if not raw.startswith(b"%b %b HTTP/1.1\r\n" % (method, target)):
        raise Fault(Reason.REQUEST_MALFORMED, "the request line is not METHOD target HTTP/1.1", field="request line")


def _check_raw(raw: bytes, ambiguous: Reason) -> None:
    """Line ends are CRLF, lines are not folded, and nothing else is a control byte."""
    lines = raw.count(b"\r\n")
    if raw.translate(None, _PLAIN) != b"\r\n" * lines or b"\r\n " in raw or b"\r\n\t" in raw:
        raise Fault(ambiguous, "a control byte, a bare line end or a folded line", field="headers")


def _request_head(method: bytes, seen: _Seen) -> RequestHead:
    passed, control = headers.sort(seen.fields, Reason.REQUEST_AMBIGUOUS)
    authority = control.get(b"host", b"").lower()
    host = _HOST.fullmatch(authority)
    if not host or b".." in authority:
        raise Fault(Reason.REQUEST_AMBIGUOUS, "expected one Host with a name and, it may be, a port", field="host")
    length = _length(control, Reason.REQUEST_AMBIGUOUS)
    if length and method in _BODILESS:
        raise Fault(Reason.REQUEST_AMBIGUOUS, "GET and HEAD have no body", field="body")
    connection = headers.tokens(control[b"connection"]) if b"connection" in control else []
    return RequestHead(
        method=method,
        target=seen.target,
        host=host["name"],
        authority=authority,
        length=length or 0,
        upgrade=_upgrade(control, connection, method, length),
        expects_continue=_expects_continue(control, length),
        keep_alive=b"close" not in connection,
        traceparent=control.get(b"traceparent", b""),
        tracestate=control.get(b"tracestate", b""),
        fields=passed,
        lines=lines_of(passed),
        nominated=connection,
        takes_trailers=b"te" in control and b"trailers" in headers.tokens(control[b"te"]),
    )


_Section = tuple[bytes, bytes, int, bytes, bool, bool, bytes, bytes, list[Field], bytes, Sequence[bytes], bool]


def _section(head: RequestHead) -> _Section:
    """All of `head` that follows from its method and its header section."""
    of_ours = head.host, head.authority, head.length, head.upgrade, head.expects_continue, head.keep_alive
    of_fields = head.traceparent, head.tracestate, head.fields, head.lines, head.nominated, head.takes_trailers
    return (*of_ours, *of_fields)


def lines_of(fields: Sequence[Field]) -> bytes:
    """As they are written."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _length(control: dict[bytes, bytes], ambiguous: Reason) -> int | None:
    """The length that the head declares; None when it declares none."""
    coding, length = control.get(b"transfer-encoding"), control.get(b"content-length")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise Fault(ambiguous, "expected Content-Length, or Transfer-Encoding: chunked alone", field="body")
        return CHUNKED
    if length is None:
        return None
    if not _LENGTH.fullmatch(length):
        raise Fault(ambiguous, "expected digits", field="content-length")
    return int(length)


def _upgrade(control: dict[bytes, bytes], connection: list[bytes], method: bytes, length: int | None) -> bytes:
    """The protocol asked for (RFC 9110 §7.8): Upgrade and `Connection: upgrade` both, one protocol, and no body. A
    WebSocket begins with a GET (RFC 6455 §4.1); SPDY, as Kubernetes' exec and port-forward use it, with a POST too."""
    asked = control.get(b"upgrade")
    if asked is None and b"upgrade" not in connection:
        return b""
    wanted = headers.tokens(asked or b"")
    if b"upgrade" not in connection or len(wanted) != 1 or not _PROTOCOL.fullmatch(wanted[0]):
        raise Fault(Reason.UPGRADE_REFUSED, "expected one protocol in Upgrade, and upgrade in Connection")
    if length or method not in {b"GET", b"POST"} or (method == b"POST" and wanted[0] == b"websocket"):
        raise Fault(Reason.UPGRADE_REFUSED, "expected a GET, or a POST that is no WebSocket's, without a body")
    return wanted[0]


def _expects_continue(control: dict[bytes, bytes], length: int | None) -> bool:
    expected = control.get(b"expect")
    if expected is None:
        return False
    if expected.lower() != b"100-continue":
        raise Fault(Reason.EXPECTATION_UNKNOWN, field="expect")
    return bool(length)


def _response_head(status: int, persistent: bool, fields: list[Field], method: bytes) -> ResponseHead:
    passed, control = headers.sort(fields, Reason.UPSTREAM_INVALID)
    length = _length(control, Reason.UPSTREAM_INVALID)
    connection = headers.tokens(control[b"connection"]) if b"connection" in control else []
    if not 100 <= status <= 599 or (length == CHUNKED and (not persistent or status < 200 or status == 204)):
        raise Fault(Reason.UPSTREAM_INVALID, "a status or a length that HTTP/1.1 does not know")
    bodiless = status < 200 or status in {204, 304} or method == b"HEAD"
    return ResponseHead(
        status=status,
        length=0 if bodiless else (UNTIL_CLOSE if length is None else length),
        declared=length if length is not None and length >= 0 and (method == b"HEAD" or status == 304) else None,
        upgrade=control.get(b"upgrade", b"").lower() if b"upgrade" in connection else b"",
        keep_alive=persistent and b"close" not in connection,
        fields=passed,
        lines=lines_of(passed),
        nominated=connection,
    )

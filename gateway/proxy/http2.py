"""HTTP/2 messages (RFC 9113 §8) as the HTTP/1.1 messages that they stand for, and back. Pure values.

Law held here: there is one reader of requests. A header list that HTTP/2 allows is written out as the HTTP/1.1 head
that means the same, and `gateway.proxy.http1` reads that: what it refuses, forwards or removes is the same by both
protocols. So nothing may be written out that could become another line, another field or another request:
- pseudo-header fields come first, each once, the ones of a request alone (§8.3); `:scheme` is https;
- names are in lower case and tokens, values hold no control byte and no white space at their ends (§8.2.1);
- fields of a connection are refused (§8.2.2); TE may say `trailers` alone; Host may only repeat `:authority`;
- the length of the body is that of the DATA frames: h2 counts them against Content-Length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy import headers
from gateway.proxy.headers import Field
from gateway.proxy.http1 import METHODS, ResponseHead
from gateway.proxy.refusal import Refusal

_REQUEST = frozenset({b":method", b":scheme", b":authority", b":path"})
_CONNECT = _REQUEST | {b":protocol"}  # RFC 8441 §4
_OF_A_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
_READ = _OF_A_CONNECTION | {b"host", b"te", b"cookie", b"content-length"}
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_VISIBLE = bytes(range(0x21, 0x7F))
_PLAIN = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
_LOOSE = re.compile(rb"\n[ \t]|[ \t]\n")
_BODILESS = frozenset({204, 304})


def as_http1(fields: Iterable[Field], *, ended: bool, websocket_key: bytes = b"") -> bytes:
    """The HTTP/1.1 head that means the same as the header list `fields`. `ended`: no body follows. `websocket_key` is
    for an extended CONNECT (RFC 8441), which HTTP/1.1 asks for with a key (RFC 6455 §4.1); without it there is none.
    Raises `Fault`."""
    pseudo, regular = _parted(fields)
    _check_pseudo(pseudo)
    _check_bytes(regular)
    authority, target = pseudo[b":authority"], pseudo[b":path"]
    lines, declared = _lines(regular, authority)
    if b":protocol" in pseudo or pseudo[b":method"] == b"CONNECT":
        _check_connect(pseudo, ended, declared, websocket_key)
        start = b"GET %b HTTP/1.1\r\nhost: %b\r\n" % (target, authority)
        lines.append(b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: %b\r\n" % websocket_key)
    else:
        if pseudo[b":method"] not in METHODS:
            raise Fault(Reason.METHOD_UNSUPPORTED, field="method")
        start = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (pseudo[b":method"], target, authority)
        if not ended and not declared:
            lines.append(b"transfer-encoding: chunked\r\n")
        if ended and declared not in {b"", b"0"}:
            raise Fault(Reason.REQUEST_AMBIGUOUS, "Content-Length is not that of the body", field="content-length")
    return b"".join((start, *lines, b"\r\n"))


def trailers_of(fields: Iterable[Field]) -> list[Field]:
    """What passes of a request's trailer section, which has to be of fields (RFC 9113 §8.1). Raises `Fault`."""
    pseudo, regular = _parted(fields)
    if pseudo:
        raise _malformed("a pseudo-header field among the trailers")
    _check_bytes(regular)
    return headers.trailers(regular, (), Reason.REQUEST_MALFORMED)


def trailer_fields(trailers: Iterable[Field]) -> list[Field]:
    """An answer's trailer section."""
    return [(name.lower(), value) for name, value in trailers]


def response_fields(head: ResponseHead, decision: str, *, head_only: bool) -> list[Field]:
    """The final response's header list. `head_only`: it answers a HEAD."""
    fields = [_status(head.status), *_lower(head), _decision(decision)]
    length = head.declared
    if length is None and head.length >= 0 and not head_only and head.status not in _BODILESS:
        length = head.length
    if length is not None:
        fields.append((b"content-length", b"%d" % length))
    return fields


def informational_fields(head: ResponseHead) -> list[Field]:
    return [_status(head.status), *_lower(head)]


def connected_fields(head: ResponseHead, decision: str) -> list[Field]:
    """What says that an extended CONNECT was accepted (RFC 8441 §5): the key's proof was for the gateway."""
    kept = [field for field in _lower(head) if field[0] != b"sec-websocket-accept"]
    return [_status(200), *kept, _decision(decision)]


def refusal_fields(refusal: Refusal) -> list[Field]:
    return [_status(refusal.status), *refusal.fields]


def _parted(fields: Iterable[Field]) -> tuple[dict[bytes, bytes], list[Field]]:
    pseudo: dict[bytes, bytes] = {}
    regular: list[Field] = []
    for name, value in fields:
        if not name.startswith(b":"):
            regular.append((name, value))
        elif regular or name in pseudo:
            raise _malformed("pseudo-header fields come first, each once")
        else:
            pseudo[name] = value
    return pseudo, regular


def _check_bytes(regular: list[Field]) -> None:
    """Nothing of it can end a line or a field."""
    names = [name for name, _ in regular]
    if b"" in names or b"".join(names).translate(None, _TOKEN):
        raise _malformed("a field name is not a token in lower case")
    values = b"\n".join([b"", *[value for _, value in regular], b""])
    if values.translate(None, _PLAIN) != b"\n" * (len(names) + 1) or _LOOSE.search(values):
        raise _malformed("a field value with a control byte, or with white space at an end")


def _check_pseudo(pseudo: dict[bytes, bytes]) -> None:
    """They are those of a request, and none can end a line or a target."""
    if pseudo.keys() != (_CONNECT if b":protocol" in pseudo else _REQUEST) or not all(pseudo.values()):
        raise _malformed("expected :method, :scheme, :authority and :path")
    if b"".join(pseudo.values()).translate(None, _VISIBLE):
        raise _malformed("a pseudo-header field with a space or a control byte")
    if pseudo[b":scheme"] != b"https":
        raise _malformed("the scheme is not https")


def _lines(regular: list[Field], authority: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the fields that HTTP/1.1 has too, and Content-Length's value, or nothing."""
    lines: list[bytes] = []
    crumbs: list[bytes] = []
    declared = b""
    for name, value in regular:
        if name not in _READ:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"cookie":
            crumbs.append(value)
        elif name == b"content-length":
            declared = value or b"-"
            lines.append(b"content-length: %b\r\n" % value)
        elif name == b"host":
            if value.lower() != authority.lower():
                raise Fault(Reason.REQUEST_AMBIGUOUS, "Host is not the :authority", field="host")
        elif name != b"te" or value != b"trailers":
            raise _malformed("a field that belongs to a connection of HTTP/1.1")
        else:
            lines.append(b"te: trailers\r\n")
    if crumbs:  # RFC 9113 §8.2.3
        lines.append(b"cookie: %b\r\n" % b"; ".join(crumbs))
    return lines, declared


def _check_connect(pseudo: dict[bytes, bytes], ended: bool, declared: bytes, websocket_key: bytes) -> None:
    if pseudo[b":method"] != b"CONNECT" or b":protocol" not in pseudo or not websocket_key:
        raise Fault(Reason.METHOD_UNSUPPORTED, field="method")
    if pseudo[b":protocol"] != b"websocket" or ended or declared:
        raise Fault(Reason.UPGRADE_REFUSED, "expected CONNECT with :protocol websocket, and no body")


def _malformed(detail: str) -> Fault:
    return Fault(Reason.REQUEST_MALFORMED, detail, field="headers")


def _status(status: int) -> Field:
    return b":status", b"%d" % status


def _lower(head: ResponseHead) -> list[Field]:
    return [(name.lower(), value) for name, value in head.fields]


def _decision(decision: str) -> Field:
    return b"x-sallyport-decision", decision.encode("ascii")

"""HTTP/1.1 messages to bytes (RFC 9112). Pure values."""

from __future__ import annotations

from http import HTTPStatus

from gateway.proxy.headers import Field
from gateway.proxy.http1 import ResponseHead
from gateway.proxy.refusal import Refusal

LAST_CHUNK = b"0\r\n\r\n"
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_BODILESS = frozenset({204, 304})


def informational(head: ResponseHead) -> bytes:
    return b"".join((_status_line(head.status), *_field_lines(head.fields), b"\r\n"))


def response_head(head: ResponseHead, decision: str, *, chunked: bool, head_only: bool, close: bool) -> bytes:
    """The final response's head. `chunked`: its body is sent in chunks. `head_only`: it answers a HEAD. `close`: it is
    the connection's last."""
    lines = [_status_line(head.status), *_field_lines(head.fields), _decision_line(decision)]
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif head.declared is not None:
        lines.append(b"content-length: %d\r\n" % head.declared)
    elif not head_only and head.status not in _BODILESS:
        lines.append(b"content-length: %d\r\n" % head.length)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def switched(head: ResponseHead, decision: str) -> bytes:
    """The head of a 101 (RFC 9110 §15.2.2)."""
    lines = (_status_line(101), *_field_lines(head.fields), _decision_line(decision))
    return b"".join((*lines, b"connection: upgrade\r\nupgrade: %b\r\n\r\n" % head.upgrade))


def refused(refusal: Refusal, *, close: bool, head_only: bool) -> bytes:
    """The whole response. `close` and `head_only` as in `response_head`."""
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    lines = (_status_line(refusal.status), *_field_lines(refusal.fields), end)
    return b"".join((*lines, b"" if head_only else refusal.body))


def chunks(payload: bytes, done: bool) -> bytes:
    """`payload` as a chunk, if it is not empty; and the body's end, if it is `done` (RFC 9112 §7.1)."""
    if not payload:
        return LAST_CHUNK if done else b""
    return b"%x\r\n%b\r\n%b" % (len(payload), payload, LAST_CHUNK if done else b"")


def _status_line(status: int) -> bytes:
    """The status line with the standard phrase: an upstream's own is not repeated."""
    return b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))


def _decision_line(decision: str) -> bytes:
    return b"x-sallyport-decision: %b\r\n" % decision.encode("ascii")


def _field_lines(fields: list[Field]) -> list[bytes]:
    return [b"%b: %b\r\n" % field for field in fields]

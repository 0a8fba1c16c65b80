"""HTTP/1.1 messages to bytes (RFC 9112). Pure values."""

from __future__ import annotations

from http import HTTPStatus

from gateway.proxy.http1 import ResponseHead
from gateway.proxy.refusal import Refusal

LAST_CHUNK = b"0\r\n\r\n"
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
# With the standard phrases: an upstream's own is not repeated.
_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(100, 600)}
_BODILESS = frozenset({204, 304})


def informational(head: ResponseHead) -> bytes:
    return b"".join((_STATUS_LINES[head.status], head.lines, b"\r\n"))


def response_head(head: ResponseHead, decision: str, *, chunked: bool, head_only: bool, close: bool) -> bytes:
    """The final response's head. `chunked`: its body is sent in chunks. `head_only`: it answers a HEAD. `close`: it is
    the connection's last."""
    framing = b""
    if chunked:
        framing = b"transfer-encoding: chunked\r\n"
    elif head.declared is not None:
        framing = b"content-length: %d\r\n" % head.declared
    elif not head_only and head.status not in _BODILESS:
        framing = b"content-length: %d\r\n" % head.length
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    return b"".join((_STATUS_LINES[head.status], head.lines, _decision_line(decision), framing, end))


def switched(head: ResponseHead, decision: str) -> bytes:
    """The head of a 101 (RFC 9110 §15.2.2)."""
    end = b"connection: upgrade\r\nupgrade: %b\r\n\r\n" % head.upgrade
    return b"".join((_STATUS_LINES[101], head.lines, _decision_line(decision), end))


def refused(refusal: Refusal, *, close: bool, head_only: bool) -> bytes:
    """The whole response. `close` and `head_only` as in `response_head`."""
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    lines = (_STATUS_LINES[refusal.status], *[b"%b: %b\r\n" % field for field in refusal.fields], end)
    return b"".join((*lines, b"" if head_only else refusal.body))


def chunks(payload: bytes, done: bool) -> bytes:
    """`payload` as a chunk, if it is not empty; and the body's end, if it is `done` (RFC 9112 §7.1)."""
    if not payload:
        return LAST_CHUNK if done else b""
    return b"%x\r\n%b\r\n%b" % (len(payload), payload, LAST_CHUNK if done else b"")


def _decision_line(decision: str) -> bytes:
    return b"x-sallyport-decision: %b\r\n" % decision.encode("ascii")

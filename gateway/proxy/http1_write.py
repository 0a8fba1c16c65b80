"""HTTP/1.1 messages to bytes (RFC 9112). Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from foundation.trace import TraceContext
from gateway.proxy.headers import Field
from gateway.proxy.http1 import CHUNKED, RequestHead, ResponseHead, lines_of
from gateway.proxy.refusal import Refusal
from policies.model import CanonicalRequest

LAST_CHUNK = b"0\r\n\r\n"
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
# With the standard phrases: an upstream's own is not repeated.
_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(100, 600)}
_BODILESS = frozenset({204, 304})
_NEVER_A_BODY = frozenset({b"GET", b"HEAD"})


def request_head(request: CanonicalRequest, head: RequestHead, via: bytes, who: bytes, trace: bytes) -> bytes:
    """The head of a request to an upstream: what was decided, and of what was read the fields that pass. `via`, `who`
    and `trace` are whole lines of ours."""
    lines = [
        b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (request.method.encode("ascii"), request.target, head.authority),
        via,
        who,
        head.lines,
        trace,
    ]
    if head.length > 0 or (head.length == 0 and head.method not in _NEVER_A_BODY):
        lines.append(b"content-length: %d\r\n" % head.length)
    elif head.length == CHUNKED:
        lines.append(b"transfer-encoding: chunked\r\n")
    if head.expects_continue:
        lines.append(b"expect: 100-continue\r\n")
    if head.upgrade:
        lines.append(b"connection: upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    elif head.takes_trailers:
        lines.append(b"connection: te\r\nte: trailers\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def trace_lines(head: RequestHead, own: TraceContext) -> bytes:
    """This hop's `traceparent`; the caller's state goes on only with the caller's trace (W3C Trace Context §3.3)."""
    line = b"traceparent: %b\r\n" % own.header().encode("ascii")
    kept = head.tracestate and own.trace_id in head.traceparent.decode("latin-1")
    return line + (b"tracestate: %b\r\n" % head.tracestate if kept else b"")


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


def chunks(payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> bytes:
    """`payload` as a chunk, if it is not empty; and the body's end with its trailers, if it is `done` (RFC 9112
    §7.1)."""
    end = LAST_CHUNK if done else b""
    if trailers and done:
        end = b"0\r\n%b\r\n" % lines_of(trailers)
    return b"%x\r\n%b\r\n%b" % (len(payload), payload, end) if payload else end


def _decision_line(decision: str) -> bytes:
    return b"x-sallyport-decision: %b\r\n" % decision.encode("ascii")

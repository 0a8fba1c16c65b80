"""A refusal as the client sees it: `application/problem+json` (RFC 9457) with reason, meaning, remedy and decision."""

from __future__ import annotations

import json
from http import HTTPStatus

from foundation.faults import Fault, problem
from foundation.reasons import Reason

_AGAIN_SOON = frozenset({Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.DRAINING, Reason.DECISION_UNSTABLE})
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """The status line with the standard phrase: an upstream's own is not repeated."""
    return b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))


def refusal(fault: Fault, decision: str, *, close: bool, head_only: bool) -> bytes:
    """The whole response. `close`: it is the connection's last. `head_only`: it answers a HEAD."""
    told = problem(fault)
    if decision:
        told["decision"] = decision
    body = json.dumps(told, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    lines = [
        status_line(fault.reason.status),
        b"content-type: application/problem+json\r\ncache-control: no-store\r\n",
        b"content-length: %d\r\n" % len(body),
    ]
    if decision:
        lines.append(b"x-sallyport-decision: %b\r\n" % decision.encode("ascii"))
    if fault.reason in _AGAIN_SOON:
        lines.append(b"retry-after: 1\r\n")
    if close:
        lines.append(b"connection: close\r\n")
    return b"".join((*lines, b"\r\n", b"" if head_only else body))

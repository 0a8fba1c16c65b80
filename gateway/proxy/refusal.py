"""A refusal as the client sees it: `application/problem+json` (RFC 9457) with reason, meaning, remedy and decision."""

from __future__ import annotations

import json
from typing import NamedTuple

from foundation.faults import Fault, problem, retry_after
from foundation.reasons import Reason
from gateway.proxy.headers import Field

_SPREAD_SECONDS = 4  # those who are turned away together should not come back together


class Refusal(NamedTuple):
    """A whole response. `fields` are in lower case, Content-Length among them."""

    status: int
    fields: list[Field]
    body: bytes


def refusal(fault: Fault, decision: str) -> Refusal:
    """What tells of `fault`. `decision` is the id of the decision behind it, or empty."""
    told = problem(fault)
    if decision:
        told["decision"] = decision
    body = json.dumps(told, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    fields = [
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
        (b"content-length", b"%d" % len(body)),
    ]
    if decision:
        fields.append((b"x-sallyport-decision", decision.encode("ascii")))
    again = retry_after(fault.reason)
    if fault.reason is Reason.OVERLOADED and decision:
        again += int(decision[-1], 16) % _SPREAD_SECONDS
    if again:
        fields.append((b"retry-after", b"%d" % again))
    return Refusal(fault.reason.status, fields, body)

"""One typed fault inside, one mapping to the outside.

Raise `Fault(Reason.X, ...)` wherever something is refused; listeners turn it into a response with
`problem`, commands into a message with `remedy`. `detail` is written for the caller and must never hold
a secret; `internal` is for the audit log and never leaves the process.
"""

from __future__ import annotations

from typing import TypedDict

from foundation.reasons import Reason


class Fault(Exception):
    """A refusal with its reason.

    reason: the code from the closed vocabulary. detail: what was wrong in this case, safe to show the
    caller. field: the path of the field, setting or structure that is at fault, when there is one.
    internal: what only our own records may say.
    """

    def __init__(self, reason: Reason, detail: str = "", *, field: str = "", internal: str = "") -> None:
        super().__init__(reason.code, detail, field)
        self.reason = reason
        self.detail = detail
        self.field = field
        self.internal = internal

    def __str__(self) -> str:
        where = f" ({self.field})" if self.field else ""
        what = self.detail or self.reason.meaning
        return f"{self.reason.code}{where}: {what}"


class Problem(TypedDict, total=False):
    """The body of every refusal, as `application/problem+json` (RFC 9457 §3)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    field: str
    remedy: str
    decision: str
    instance: str


def problem(fault: Fault) -> Problem:
    """What the outside may know of `fault`."""
    body: Problem = {
        "type": f"urn:sallyport:reason:{fault.reason.code}",
        "title": fault.reason.meaning,
        "status": fault.reason.status,
        "reason": fault.reason.code,
        "remedy": fault.reason.remedy,
    }
    if fault.detail:
        body["detail"] = fault.detail
    if fault.field:
        body["field"] = fault.field
    return body


_AGAIN_SOON = frozenset(
    {
        Reason.OVERLOADED,
        Reason.RATE_LIMITED,
        Reason.CONNECTION_LIMIT,
        Reason.CONNECTION_MEMORY,
        Reason.DRAINING,
        Reason.DECISION_UNSTABLE,
    }
)
_PASSING = frozenset({429, 503})


def retry_after(reason: Reason) -> int:
    """In how many seconds it is worth asking again (RFC 9110 §10.2.3): 0 where asking again is no remedy. Every answer
    of status 429 or 503 tells it."""
    if reason.status not in _PASSING:
        return 0
    return 1 if reason in _AGAIN_SOON else 10

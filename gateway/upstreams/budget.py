"""What may be sent once more, and how much of that at a time. Pure values.

Laws held here:
- nothing is repeated that may have had an effect: either no byte of it was written, or it is a GET or HEAD without a
  body, of whose answer nothing was passed on;
- repeats under way are bounded by the exchanges under way, so that a failing upstream is not hit harder for failing. A
  request that reached no upstream hit none: that it goes on to another address is bounded by its tries alone.
"""

from __future__ import annotations

from enum import Enum, auto

from policies.upstreams import Retries


class Failure(Enum):
    """How far a request came before it failed."""

    UNREACHED = auto()  # no connection: no byte was written
    STALE = auto()  # it was written to a connection that had been idle, which was closed; no byte of an answer came
    UNANSWERED = auto()  # it was written, and no whole head of an answer came
    UNAVAILABLE = auto()  # the answer is 503, and nothing of it was passed on
    FINAL = auto()  # something no other address would mend, or nobody waits for


def is_repeatable(failure: Failure, *, safe: bool, retry_503: bool) -> bool:
    """Whether the request may be sent again. `safe`: it is a GET or HEAD without a body; `retry_503`: its route takes
    503 for no answer."""
    if failure is Failure.UNREACHED:
        return True
    if failure is Failure.UNAVAILABLE:
        return safe and retry_503
    return safe and failure is not Failure.FINAL


def has_budget(failure: Failure, retrying: int, active: int, retries: Retries) -> bool:
    """Whether one more repeat may begin after `failure`, when `retrying` are under way among `active` exchanges."""
    return failure is Failure.UNREACHED or retrying < max(retries.least, active * retries.percent // 100)

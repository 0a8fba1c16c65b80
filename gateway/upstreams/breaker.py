"""Whether a pool takes one more exchange. Pure values.

The bounds hold for each worker. What is over them is refused at once: waiting in a queue in front of an upstream that
is too slow helps neither.
"""

from __future__ import annotations

from policies.upstreams import Breaker


def why_open(breaker: Breaker, *, active: int, pending: int, dials: bool) -> str:
    """Which bound the next exchange would break, in words; empty when none. `active` exchanges have a connection,
    `pending` wait for a dial, and this one `dials`."""
    if 0 < breaker.requests <= active + pending:
        return f"{breaker.requests} requests are under way"
    if dials and 0 < breaker.pending <= pending:
        return f"{breaker.pending} requests wait for a connection"
    return ""

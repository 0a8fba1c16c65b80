"""Obligations of a permit that keep state, met for each request after the cache.

`rate` {per_second, burst}: a token bucket for each identity on each route. An obligation that this gateway does not
know refuses: what policy demands is done or the request is denied.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeGuard

from foundation.clock import Clock
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from policies.model import Obligation, Permit

MAX_BUCKETS = 100_000


class Obligations:
    """The buckets of one worker, at most `MAX_BUCKETS`; the one least used goes first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[tuple[SpiffeId, str], tuple[float, float]] = OrderedDict()

    def unmet(self, permit: Permit) -> Reason | None:
        """Why the permit's obligations cannot be met now, or None when they are."""
        for obligation in permit.obligations:
            if obligation.kind != "rate":
                return Reason.ENGINE_ANSWER_INVALID
            reason = self._rate(permit, obligation)
            if reason is not None:
                return reason
        return None

    def _rate(self, permit: Permit, obligation: Obligation) -> Reason | None:
        per_second, burst = obligation.parameters.get("per_second"), obligation.parameters.get("burst", 1)
        if not _positive(per_second) or not _positive(burst):
            return Reason.ENGINE_ANSWER_INVALID
        key, now = (permit.query.identity.id, permit.query.route), self._clock.monotonic()
        tokens, since = self._buckets.pop(key, (float(burst), now))
        tokens = min(float(burst), tokens + (now - since) * per_second)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return None if allowed else Reason.RATE_LIMITED


def _positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

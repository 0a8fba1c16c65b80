"""Obligations of a permit that keep state, met for each request after the cache.

`rate` {per_second, burst}: a token bucket for each identity on each route. An obligation that this gateway does not
know refuses: what policy demands is done or the request is denied.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TypeGuard

from foundation.clock import Clock
from foundation.reasons import Reason
from gateway.proxy.buckets import KEY_BYTES, Buckets
from policies.model import Obligation, Permit


class Obligations:
    """Meets obligations over `buckets`, which workers may share; over its own when none are given."""

    def __init__(self, clock: Clock, buckets: Buckets | None = None) -> None:
        self._clock = clock
        self._buckets = buckets or Buckets.private()

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
        whose = f"{permit.query.identity.id} {permit.query.route}".encode()
        key = blake2b(whose, digest_size=KEY_BYTES).digest()
        taken = self._buckets.take(key, self._clock.monotonic(), per_second, burst)
        return None if taken else Reason.RATE_LIMITED


def _positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

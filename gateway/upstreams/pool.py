"""A pool while it is in use: its addresses, which of them are in service, and what may be asked of it.

What is judged is judged elsewhere in this package, from values; here it is kept, and acted on. One event loop owns it.

Laws held here:
- health, ejections and load choose among addresses that a signed revision, or DNS under it, named; they never add one;
- with too few addresses in service (`panic`) all of them are used: load is no reason to refuse what policy permits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from gateway.upstreams.balance import least_loaded, ring, shares, slow_start_weight
from gateway.upstreams.breaker import why_open
from gateway.upstreams.budget import Failure, has_budget
from gateway.upstreams.endpoint import Endpoint, Lane
from gateway.upstreams.health import UNCHECKED, after
from gateway.upstreams.outlier import ejection_seconds, may_eject, verdict
from gateway.upstreams.resolve import Place
from policies.upstreams import Address, HealthCheck, Pool

NO_PLACES: Mapping[Address, Place] = MappingProxyType({})
_LOG = logging.getLogger(__name__)


class Bounds(Protocol):
    """What the gateway's own settings allow each address. Seconds."""

    @property
    def max_connections(self) -> int: ...

    @property
    def max_idle(self) -> int: ...

    @property
    def max_age(self) -> float: ...


class LivePool:
    """The pool `value` in one worker."""

    def __init__(self, value: Pool, bounds: Bounds, clock: Clock) -> None:
        self.value = value
        self.bounds = bounds
        self.clock = clock
        self.endpoints: dict[Address, Endpoint] = {}
        self.serving: list[Endpoint] = []
        self.panicking = False
        self.pending = 0  # exchanges that wait for a dial
        self.retrying = 0  # exchanges that are being repeated
        self.next_lookup = 0.0
        self.looking_up = False
        self.looked_up = asyncio.Event()  # once, however it went
        self.lookup_failure: Reason | None = None
        self.counted = {"retries": 0, "retries_refused": 0, "ejections": 0, "dial_failures": 0, "refused": 0}
        self._interval_began = clock.monotonic()
        self._warming: list[Endpoint] = []
        self.become(value)

    # --- what an exchange asks ------------------------------------------------------------------------

    def pick(self, caller: SpiffeId, failed: Sequence[Endpoint] = ()) -> Endpoint:
        """The address for the caller's next exchange: none of those where it `failed`, if there are others, and not the
        last of them, if there is another. Raises `Fault(UPSTREAM_UNHEALTHY)`."""
        serving = self.serving
        if len(serving) == 1:
            return serving[0]
        if not serving:
            raise Fault(self.lookup_failure or Reason.UPSTREAM_UNHEALTHY)
        if self._warming:
            self._warm()
        start = hash(caller)
        if failed:
            serving = [each for each in serving if each not in failed] or [
                each for each in serving if each is not failed[-1]
            ]
        return least_loaded(serving, start)

    def admit(self, *, dials: bool) -> None:
        """Raises `Fault(UPSTREAM_OVERLOADED)` when the circuit breaker is open."""
        why = why_open(self.value.breaker, active=self.active, pending=self.pending, dials=dials)
        if why:
            self.counted["refused"] += 1
            raise Fault(Reason.UPSTREAM_OVERLOADED, why)

    @property
    def is_unknown(self) -> bool:
        """Whether the pool is a name that nobody has looked up yet."""
        return self.value.dns is not None and not self.looked_up.is_set()

    @property
    def has_another(self) -> bool:
        """Whether more than one address takes requests."""
        return len(self.serving) > 1

    @property
    def is_guarded(self) -> bool:
        """Whether `admit` has anything to say."""
        breaker = self.value.breaker
        return bool(breaker.requests or breaker.pending)

    @property
    def is_shared(self) -> bool:
        """Whether connections may be lent to everybody."""
        return not (self.value.per_identity or self.value.proxy_protocol)

    def lane(self, caller: SpiffeId, source: tuple[str, int] | None) -> Lane:
        """Whose connections the caller may be lent."""
        return (caller, source) if self.value.proxy_protocol else caller

    @property
    def active(self) -> int:
        return sum(endpoint.active for endpoint in self.endpoints.values())

    # --- which addresses there are ----------------------------------------------------------------------

    def become(self, value: Pool) -> list[Endpoint]:
        """A new revision says this of the pool. The addresses that nothing new goes to: those that it no longer names,
        and all of them when connections are others from now on."""
        before, self.value = self.value, value
        gone: list[Endpoint] = []
        if _connections_of(before) != _connections_of(value):
            gone += self.retire()
            self.next_lookup = 0.0
            self.looked_up.clear()
        if value.dns is None:
            gone += self.set_addresses({address: address.host for address in value.addresses})
        if before.health != value.health:
            for endpoint in self.endpoints.values():
                endpoint.health, endpoint.next_check = UNCHECKED, 0.0
        self.reckon()
        return gone

    def retire(self) -> list[Endpoint]:
        """Let go of all addresses; which they were."""
        return self.set_addresses({})

    def set_addresses(
        self, found: Mapping[Address, str], places: Mapping[Address, Place] = NO_PLACES
    ) -> list[Endpoint]:
        """These addresses, by their names, are the pool's from now on, and stand at these places; the ones that are no
        longer."""
        gone = [endpoint for address, endpoint in self.endpoints.items() if address not in found]
        known, now = self.endpoints, self.clock.monotonic()
        self.endpoints = {each: known.get(each) or Endpoint(self, each, name) for each, name in found.items()}
        for address, endpoint in self.endpoints.items():
            if known and address not in known:  # all of a new pool begin alike
                self._came(endpoint, now)
        for endpoint in gone:
            endpoint.retire()
        self._place(places)
        self.reckon()
        return gone

    def _place(self, places: Mapping[Address, Place]) -> None:
        """Of a service: the rank of each address, and its share within it."""
        for rank in {place.priority for place in places.values()}:
            these = [each for each in self.endpoints.values() if each.address in places]
            these = [each for each in these if places[each.address].priority == rank]
            for each, share in zip(these, shares([places[one.address].weight for one in these]), strict=True):
                each.rank, each.share = rank, share

    def reckon(self) -> None:
        """Which addresses take requests, after anything changed."""
        everyone = list(self.endpoints.values())
        for rank in sorted({endpoint.rank for endpoint in everyone}):
            these = [endpoint for endpoint in everyone if endpoint.rank == rank]
            healthy = [endpoint for endpoint in these if endpoint.in_service]
            if healthy and len(healthy) * 100 >= self.value.panic * len(these):
                self.panicking, self.serving = False, ring(healthy)
                return
        self.panicking = bool(self.value.panic and everyone)
        self.serving = everyone if self.panicking else []

    # --- what addresses showed --------------------------------------------------------------------------

    def judge(self, endpoint: Endpoint) -> None:
        """Eject the address when what it showed calls for that and its pool can spare it."""
        outlier = self.value.outlier
        why = verdict(endpoint.shown, outlier)
        if not why or endpoint.ejected_until or endpoint.retired:
            return
        ejected = sum(1 for each in self.endpoints.values() if each.ejected_until)
        if not may_eject(ejected, len(self.endpoints), outlier.share):
            return
        endpoint.ejections += 1
        seconds = ejection_seconds(endpoint.ejections, outlier)
        endpoint.ejected_until = self.clock.monotonic() + seconds
        endpoint.why = why
        endpoint.forget_shown()
        self.counted["ejections"] += 1
        _LOG.warning("upstream %s: %s is ejected for %g s: %s", self.value.name, endpoint.address, seconds, why)
        self.reckon()

    def checked(self, endpoint: Endpoint, check: HealthCheck, failure: str) -> None:
        """A health check ended; `failure` is empty when it passed."""
        before = endpoint.health.in_service
        endpoint.health = after(endpoint.health, not failure, check)
        if endpoint.health.in_service is before:
            return
        endpoint.why = failure
        now = "in service" if endpoint.health.in_service else f"out of service: {failure}"
        _LOG.warning("upstream %s: %s is %s", self.value.name, endpoint.address, now)
        if endpoint.health.in_service:
            self._came(endpoint, self.clock.monotonic())
        self.reckon()

    def tend(self, now: float) -> None:
        """What only time does, at `now` (monotonic seconds): ejections end, and intervals."""
        outlier = self.value.outlier
        for endpoint in self.endpoints.values():
            if endpoint.ejected_until and endpoint.ejected_until <= now:
                endpoint.ejected_until = 0.0
                endpoint.why = ""
                self._came(endpoint, now)
                self.reckon()
            elif endpoint.ejections and not endpoint.ejected_until and now - endpoint.since > outlier.longest:
                endpoint.ejections = 0
        if now - self._interval_began >= outlier.interval:
            self._interval_began = now
            for endpoint in self.endpoints.values():
                endpoint.answers = endpoint.bad = 0

    def _came(self, endpoint: Endpoint, now: float) -> None:
        endpoint.since = now
        if self.value.slow_start:
            endpoint.weight = slow_start_weight(0.0, self.value.slow_start)
            self._warming.append(endpoint)

    def _warm(self) -> None:
        now, window = self.clock.monotonic(), self.value.slow_start
        for endpoint in self._warming:
            endpoint.weight = slow_start_weight(now - endpoint.since, window)
        self._warming = [endpoint for endpoint in self._warming if endpoint.weight < 1.0]


class Repeats:
    """How often one exchange was sent again. Once it has reached an upstream it counts in its pool's budget, until
    `end`."""

    __slots__ = ("_pool", "failed")

    def __init__(self) -> None:
        self._pool: LivePool | None = None
        self.failed: list[Endpoint] = []

    def begin(self, failure: Failure, at: Endpoint) -> bool:
        """Whether the exchange, which failed at this address, may be sent once more."""
        pool = at.pool
        retries = pool.value.retries
        if len(self.failed) >= retries.tries:
            return False
        if self._pool is None:
            if not has_budget(failure, pool.retrying, pool.active + pool.pending, retries):
                pool.counted["retries_refused"] += 1
                return False
            if failure is not Failure.UNREACHED:
                self._pool = pool
                pool.retrying += 1
        self.failed.append(at)
        pool.counted["retries"] += 1
        return True

    def end(self) -> None:
        """The exchange is over."""
        if self._pool is not None:
            self._pool.retrying -= 1
            self._pool = None


def _connections_of(pool: Pool) -> object:
    """What decides of what kind a connection is, and whose."""
    return (pool.dns, pool.tls, pool.proxy_protocol, pool.per_identity)

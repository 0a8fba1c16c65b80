"""A pool while it is in use: its addresses, their connections, what they showed, and which of them are in service.

What is judged is judged elsewhere in this package, from values; here it is kept, and acted on. One event loop owns it.

Laws held here:
- health, ejections and load choose among addresses that a signed revision, or DNS under it, named; they never add one;
- a connection goes back to the lane that it was made for: where the upstream authenticates connections, a lane is one
  identity, so that nobody speaks through what somebody else authenticated;
- with too few addresses in service (`panic`) all of them are used: load is no reason to refuse what policy permits.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from gateway.upstreams.balance import least_loaded, slow_start_weight
from gateway.upstreams.breaker import why_open
from gateway.upstreams.budget import Failure, has_budget
from gateway.upstreams.health import UNCHECKED, Health, after
from gateway.upstreams.outlier import Shown, ejection_seconds, may_eject, verdict
from policies.upstreams import Address, Destination, HealthCheck, Pool

Lane = Hashable  # whose connection it is: None where everybody's may be lent to everybody
_FIRST_ERROR = 500
_LOG = logging.getLogger(__name__)


class Pooled(Protocol):
    """A connection to an address, as a pool keeps it. `opened_at` and `idle_since` are monotonic seconds."""

    lane: Lane
    opened_at: float
    idle_since: float
    used: bool

    @property
    def alive(self) -> bool: ...

    def abort(self) -> None: ...


class Bounds(Protocol):
    """What the gateway's own settings allow each address. Seconds."""

    @property
    def max_connections(self) -> int: ...

    @property
    def max_idle(self) -> int: ...

    @property
    def max_age(self) -> float: ...


class Endpoint:
    """One address of a pool. Implements `gateway.proxy.upstream_connection.Owner`.

    `active` counts the exchanges that have one of its connections; whoever lends and takes back keeps it. `name` is
    what the address is called: the name that was looked up, or the host that was written.
    """

    __slots__ = (
        "_errors",
        "_failures",
        "_idle",
        "_idle_count",
        "active",
        "address",
        "answers",
        "bad",
        "checking",
        "connections",
        "destination",
        "dialling",
        "ejected_until",
        "ejections",
        "health",
        "name",
        "next_check",
        "pool",
        "retired",
        "since",
        "streak",
        "weight",
        "why",
    )

    def __init__(self, pool: LivePool, address: Address, name: str) -> None:
        self.pool = pool
        self.address = address
        self.name = name
        self.destination = Destination(pool.value.dns or address, pool.value.tls)
        self.active = 0
        self.weight = 1.0
        self.connections: set[Pooled] = set()
        self.dialling = 0
        self._idle: dict[Lane, list[Pooled]] = {}
        self._idle_count = 0
        self._failures = self._errors = 0  # in a row
        self.streak = False  # one of them is not zero
        self.answers = self.bad = 0  # in this interval
        self.health: Health = UNCHECKED
        self.next_check = 0.0
        self.checking = False
        self.ejections = 0
        self.ejected_until = 0.0
        self.since = 0.0  # when it came into service; monotonic
        self.why = ""
        self.retired = False  # the pool's no longer

    # --- its connections ----------------------------------------------------------------------------

    def take(self, lane: Lane) -> Pooled | None:
        """An idle connection of this lane, the one used last."""
        idle = self._idle.get(lane)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            if connection.alive:
                return connection
        return None

    def has_idle(self, lane: Lane) -> bool:
        return any(connection.alive for connection in self._idle.get(lane, ()))

    def give_back(self, connection: Pooled) -> None:
        """It is whole and free. One that is too old, or one too many, is closed."""
        pool = self.pool
        connection.used = True
        connection.idle_since = now = pool.clock.monotonic()
        if self.retired or now - connection.opened_at > pool.bounds.max_age:
            connection.abort()
            return
        if self._idle_count >= pool.bounds.max_idle and not self._evict(connection.lane):
            connection.abort()
            return
        self._idle_count += 1
        idle = self._idle.get(connection.lane)
        if idle is None:
            self._idle[connection.lane] = [connection]
        else:
            idle.append(connection)

    def _evict(self, lane: Lane) -> bool:
        """Make room by closing the connection of another lane that is idle the longest, so that no lane keeps the
        others out; whether there was one."""
        others = [idle[0] for other, idle in self._idle.items() if other != lane and idle]
        if not others:
            return False
        self._forget(oldest := min(others, key=lambda each: each.idle_since))
        oldest.abort()
        return True

    def opened(self, connection: Pooled) -> None:
        connection.opened_at = self.pool.clock.monotonic()
        self.connections.add(connection)

    def closed(self, connection: Pooled) -> None:
        self.connections.discard(connection)
        self._forget(connection)

    def _forget(self, connection: Pooled) -> None:
        idle = self._idle.get(connection.lane)
        if idle is not None and connection in idle:
            idle.remove(connection)
            self._idle_count -= 1
            if not idle:
                del self._idle[connection.lane]

    def close_idle(self, before: float) -> None:
        """Close what is idle since before then (monotonic seconds)."""
        for connection in [each for idle in self._idle.values() for each in idle if each.idle_since < before]:
            self._forget(connection)
            connection.abort()

    def retire(self) -> None:
        """The address is no longer the pool's: nothing new goes there."""
        self.retired = True
        self.close_idle(float("inf"))

    @property
    def is_full(self) -> bool:
        bound = self.pool.value.breaker.connections or self.pool.bounds.max_connections
        return len(self.connections) + self.dialling >= bound

    @property
    def is_used(self) -> bool:
        return bool(self.connections or self.dialling)

    # --- what it showed -----------------------------------------------------------------------------

    def answered(self, status: int) -> None:
        """A whole head of an answer came."""
        self.answers += 1
        if status >= _FIRST_ERROR:
            self.bad += 1
            self._failures, self._errors, self.streak = 0, self._errors + 1, True
            self.pool.judge(self)
        elif self.streak:
            self._failures, self._errors, self.streak = 0, 0, False

    def failed(self) -> None:
        """A dial failed, or an answer broke off or did not come."""
        self._failures, self.streak = self._failures + 1, True
        self.answers, self.bad = self.answers + 1, self.bad + 1
        self.pool.judge(self)

    def late(self) -> None:
        """An answer took longer than its route allows. That may be the request's doing: it counts as an error."""
        self.answered(_FIRST_ERROR)

    @property
    def shown(self) -> Shown:
        return Shown(self._failures, self._errors, self.answers, self.bad)

    def forget_shown(self) -> None:
        self._failures = self._errors = self.answers = self.bad = 0
        self.streak = False

    @property
    def in_service(self) -> bool:
        return self.health.in_service and not self.ejected_until

    @property
    def state(self) -> str:
        if not self.health.in_service:
            return "unhealthy"
        return "ejected" if self.ejected_until else "in_service"


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
        if value.dns is None:
            gone += self.set_addresses({address: address.host for address in value.addresses})
        self.reckon()
        return gone

    def retire(self) -> list[Endpoint]:
        """Let go of all addresses; which they were."""
        return self.set_addresses({})

    def set_addresses(self, found: Mapping[Address, str]) -> list[Endpoint]:
        """These addresses, by their names, are the pool's from now on; the ones that are no longer."""
        gone = [endpoint for address, endpoint in self.endpoints.items() if address not in found]
        known, now = self.endpoints, self.clock.monotonic()
        self.endpoints = {each: known.get(each) or Endpoint(self, each, name) for each, name in found.items()}
        for address, endpoint in self.endpoints.items():
            if known and address not in known:  # all of a new pool begin alike
                self._came(endpoint, now)
        for endpoint in gone:
            endpoint.retire()
        self.reckon()
        return gone

    def reckon(self) -> None:
        """Which addresses take requests, after anything changed."""
        everyone = list(self.endpoints.values())
        healthy = [endpoint for endpoint in everyone if endpoint.in_service]
        self.panicking = len(healthy) * 100 < self.value.panic * len(everyone)
        self.serving = everyone if self.panicking else healthy

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


def overview(pools: Iterable[LivePool]) -> list[dict[str, Any]]:
    """What an operator may know of the pools: their addresses, their state and why it is so."""
    return [
        {
            "pool": pool.value.name,
            "panicking": pool.panicking,
            "lookup_failure": pool.lookup_failure.code if pool.lookup_failure else "",
            "pending": pool.pending,
            "retrying": pool.retrying,
            **pool.counted,
            "addresses": [_about(endpoint, pool.clock.monotonic()) for endpoint in pool.endpoints.values()],
        }
        for pool in sorted(pools, key=lambda each: each.value.name)
    ]


def _about(endpoint: Endpoint, now: float) -> dict[str, Any]:
    return {
        "address": str(endpoint.address),
        "name": endpoint.name,
        "state": endpoint.state,
        "why": endpoint.why,
        "back_in_seconds": round(max(0.0, endpoint.ejected_until - now), 1),
        "active": endpoint.active,
        "connections": len(endpoint.connections),
        "weight": round(endpoint.weight, 2),
    }

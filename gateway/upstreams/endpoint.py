"""One address of a pool while it is in use: its connections, and what they showed. One event loop owns it.

A connection goes back to the lane that it was made for: where the upstream authenticates connections, a lane is one
identity, so that nobody speaks through what somebody else authenticated.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

from foundation.identifiers import SpiffeId
from gateway.upstreams.health import UNCHECKED, Health
from gateway.upstreams.outlier import Shown
from policies.upstreams import Address, Destination

if TYPE_CHECKING:
    from gateway.upstreams.pool import LivePool

Lane = Hashable  # whose connection it is: None where everybody's may be lent to everybody
_FIRST_ERROR = 500


class Pooled(Protocol):
    """A connection to an address, as a pool keeps it. `opened_at` and `idle_since` are monotonic seconds."""

    lane: Lane
    opened_at: float
    idle_since: float
    used: bool

    @property
    def alive(self) -> bool: ...

    def abort(self) -> None: ...


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
        "rank",
        "retired",
        "share",
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
        self.share = 1.0
        self.rank = 0  # addresses of the lowest are asked, the next ones when none of those is in service
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
        """Close what is idle since before then (monotonic seconds), and forget lanes that have nothing idle."""
        for connection in [each for idle in self._idle.values() for each in idle if each.idle_since < before]:
            self._forget(connection)
            connection.abort()
        if len(self._idle) > 1:
            self._idle = {lane: idle for lane, idle in self._idle.items() if idle}

    def close_lanes(self, identity: SpiffeId) -> None:
        """Close what is idle of this identity, whose lanes begin with it."""
        theirs = [lane for lane in self._idle if lane == identity or (isinstance(lane, tuple) and lane[0] == identity)]
        for connection in [each for lane in theirs for each in self._idle[lane]]:
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

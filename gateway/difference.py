"""What a new revision changes for exchanges that run by the one before. Pure values.

Laws held here:
- sound: an exchange that is not concerned would be permitted again, by the same grant, over the same route to the same
  upstream (`tests/gateway/test_difference.py` compares with deciding everything again);
- a route that was removed, that leads elsewhere or that another one now precedes concerns its exchanges, whatever
  policy says.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from foundation.faults import Fault
from policies.difference import PolicyDifference

if TYPE_CHECKING:
    from gateway.snapshot import PolicyPart
    from gateway.streams.registry import Exchange


class RevisionDifference:
    """From `before`, None when nothing was enforced, to `after`.

    routes: the names of the routes whose exchanges may be concerned; None when those of any route may be.
    upstreams: those that no route leads to any more.
    """

    def __init__(self, before: PolicyPart | None, after: PolicyPart) -> None:
        self._table = after.routes
        self._policy: PolicyDifference | None = None
        self._unchanged: frozenset[str] = frozenset()
        self.routes: frozenset[str] | None = None
        self.upstreams: frozenset[Hashable] = frozenset()
        if before is not None:
            self._compare(before, after)

    def concerns(self, exchange: Exchange) -> bool:
        """Whether `exchange`, which was permitted, has to be decided again."""
        permit = exchange.permit
        if permit is None or self._policy is None or exchange.upstream in self.upstreams:
            return True
        try:
            name = self._table.route_of(permit.query).name
        except Fault:
            return True
        return name != permit.query.route or name not in self._unchanged or self._policy.concerns(permit.query)

    def _compare(self, before: PolicyPart, after: PolicyPart) -> None:
        old, new = before.routes.places, after.routes.places
        self.upstreams = frozenset(
            {each for route in old.values() for each in route.destinations}
            - {each for route in new.values() for each in route.destinations}
        )
        by_name = {route.name: route for route in new.values()} | after.routes.streams
        before_by_name = {route.name: route for route in old.values()} | before.routes.streams
        self._unchanged = frozenset(name for name, route in before_by_name.items() if by_name.get(name) == route)
        if before.compiled is None or after.compiled is None:
            return
        self._policy = PolicyDifference(before.compiled, after.compiled)
        same_ways = {place: route.name for place, route in old.items()} == {
            place: route.name for place, route in new.items()
        }
        if same_ways and self._policy.routes is not None:
            self.routes = self._policy.routes | ((before_by_name.keys() | by_name.keys()) - self._unchanged)

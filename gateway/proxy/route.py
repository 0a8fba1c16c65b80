"""Which route a request takes, and which address of it a permit leads to. Pure values."""

from __future__ import annotations

from collections.abc import Iterable

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.model import CanonicalRequest, Permit
from policies.routes import Address, Route, RouteType

ANY_HOST = "*"


class RouteTable:
    """The `http` routes of one revision. An exact host comes before `*`; of its routes the one with the longest prefix
    in whole segments is taken."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Raises `Fault(POLICY_DATA_INVALID)` when two routes have one host and prefix."""
        self._hosts: dict[str, dict[tuple[str, ...], Route]] = {}
        self._depths: dict[str, int] = {}
        for route in routes:
            if route.type is RouteType.HTTP:
                self._add(route)

    def match(self, request: CanonicalRequest) -> Route:
        """The route of `request`. Raises `Fault(ROUTE_UNKNOWN)`."""
        for host in (request.host, ANY_HOST):
            prefixes = self._hosts.get(host)
            if prefixes is not None:
                route = self._longest(prefixes, self._depths[host], request.path)
                if route is not None:
                    return route
        raise Fault(Reason.ROUTE_UNKNOWN, f"host {request.host}")

    @property
    def places(self) -> dict[tuple[str, tuple[str, ...]], Route]:
        """The routes by host and prefix."""
        return {(host, prefix): route for host, each in self._hosts.items() for prefix, route in each.items()}

    def _add(self, route: Route) -> None:
        host = route.host.lower()
        prefixes = self._hosts.setdefault(host, {})
        if route.prefix in prefixes:
            detail = f"same host and prefix as route {prefixes[route.prefix].name!r}"
            raise Fault(Reason.POLICY_DATA_INVALID, detail, field=f"routes.{route.name}")
        prefixes[route.prefix] = route
        self._depths[host] = max(self._depths.get(host, 0), len(route.prefix))

    @staticmethod
    def _longest(prefixes: dict[tuple[str, ...], Route], depth: int, path: tuple[str, ...]) -> Route | None:
        for length in range(min(depth, len(path)), -1, -1):
            route = prefixes.get(path[:length])
            if route is not None:
                return route
        return None


def targets(permit: Permit, route: Route) -> tuple[Address, ...]:
    """The addresses that `permit` leads to, in the order in which to try them. Callers spread over the upstreams by
    their identity, so that one caller keeps to one while it is up. Raises `Fault(ROUTE_UNKNOWN)` when the permit is for
    another route, or the route has no upstream."""
    if permit.query.route != route.name or not route.upstreams:
        raise Fault(Reason.ROUTE_UNKNOWN, "the route has no upstream for this permit")
    if len(route.upstreams) == 1:
        return route.upstreams
    first = hash(permit.query.identity.id) % len(route.upstreams)
    return route.upstreams[first:] + route.upstreams[:first]

"""Which route a request or a stream takes, and which pool a permit leads to. Pure values."""

from __future__ import annotations

from collections.abc import Iterable

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.model import CanonicalRequest, Permit, Query
from policies.routes import Route, RouteType
from policies.upstreams import Pool

ANY_HOST = "*"


class RouteTable:
    """The routes of one revision. Of `http` routes an exact host comes before `*`, and of its routes the one with the
    longest prefix in whole segments is taken. `streams` are the `stream` routes, which are asked for by name. `pools`
    are those that a route leads to, by name."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Raises `Fault(POLICY_DATA_INVALID)` when two routes have one host and prefix."""
        self._hosts: dict[str, dict[tuple[str, ...], Route]] = {}
        self._depths: dict[str, int] = {}
        self.pools: dict[str, Pool] = {}
        self.streams: dict[str, Route] = {}
        for route in routes:
            if route.type is RouteType.HTTP:
                self._add(route)
            else:
                self.streams[route.name] = route

    def match(self, request: CanonicalRequest) -> Route:
        """The route of `request`. Raises `Fault(ROUTE_UNKNOWN)`."""
        for host in (request.host, ANY_HOST):
            prefixes = self._hosts.get(host)
            if prefixes is not None:
                route = self._longest(prefixes, self._depths[host], request.path)
                if route is not None:
                    return route
        raise Fault(Reason.ROUTE_UNKNOWN, f"host {request.host}")

    def stream(self, name: str) -> Route:
        """The `stream` route of this name. Raises `Fault(ROUTE_UNKNOWN)`."""
        route = self.streams.get(name)
        if route is None:
            raise Fault(Reason.ROUTE_UNKNOWN, "no stream route has this name")
        return route

    def route_of(self, query: Query) -> Route:
        """The route that what was asked takes now. Raises `Fault(ROUTE_UNKNOWN)`."""
        return self.match(query.request) if query.target is None else self.stream(query.route)

    @property
    def places(self) -> dict[tuple[str, tuple[str, ...]], Route]:
        """The `http` routes by host and prefix."""
        return {(host, prefix): route for host, each in self._hosts.items() for prefix, route in each.items()}

    def _add(self, route: Route) -> None:
        if route.pool is not None:
            self.pools[route.pool.name] = route.pool
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


def pool_of(permit: Permit, route: Route) -> Pool:
    """The pool that `permit` leads to. Raises `Fault(ROUTE_UNKNOWN)` when the permit is for another route, or the route
    has no upstream."""
    if permit.query.route != route.name or route.pool is None:
        raise Fault(Reason.ROUTE_UNKNOWN, "the route has no upstream for this permit")
    return route.pool

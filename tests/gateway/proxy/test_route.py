"""Which route a request takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foundation.faults import Fault
from foundation.identity import SnapshotNumbers
from foundation.reasons import Reason
from gateway.proxy.route import RouteTable, pool_of
from policies.model import FOREVER, Permit, Query, Staleness, judge
from policies.routes import Route, RouteType
from policies.upstreams import Address, Pool
from tests.fakes.trust import ALLOW, HARDWARE, record, request

POOL = Pool("p", (Address("a.example", 1),))


def make(name: str, host: str, *prefix: str, kind: RouteType = RouteType.HTTP) -> Route:
    return Route(name, kind, host, prefix, POOL)


TABLE = RouteTable(
    (
        make("any", "*"),
        make("any-v1", "*", "v1"),
        make("control", "control.example", "v1"),
        make("deep", "control.example", "v1", "kv", "range"),
        make("broker", "control.example", "v2", kind=RouteType.STREAM),
    )
)


@pytest.mark.parametrize(
    ("host", "path", "name"),
    [
        ("control.example", ("v1",), "control"),
        ("control.example", ("v1", "kv"), "control"),
        ("control.example", ("v1", "kv", "range"), "deep"),
        ("control.example", ("v1", "kv", "range", "x"), "deep"),
        ("control.example", ("v1x",), "any"),
        ("control.example", ("v2",), "any"),
        ("control.example", (), "any"),
        ("other.example", ("v1", "x"), "any-v1"),
    ],
)
def test_an_exact_host_comes_first_then_the_longest_prefix_in_whole_segments(
    host: str, path: tuple[str, ...], name: str
) -> None:
    assert TABLE.match(replace(request("GET", *path), host=host)).name == name


def test_what_no_route_matches_is_refused() -> None:
    with pytest.raises(Fault) as refused:
        RouteTable((make("x", "x.example"),)).match(request("GET"))
    assert refused.value.reason is Reason.ROUTE_UNKNOWN


def test_two_routes_for_the_same_requests_are_refused() -> None:
    with pytest.raises(Fault) as refused:
        RouteTable((make("x", "X.example", "a"), make("y", "x.example", "a")))
    assert refused.value.reason is Reason.POLICY_DATA_INVALID


def permit(route: str, name: str = "edge-1") -> Permit:
    query = Query(1, record(name), HARDWARE, route, request(), Staleness.FRESH)
    decision = judge("d-1", query, ALLOW, FOREVER, SnapshotNumbers(1, 0, 0, 0))
    assert isinstance(decision, Permit)
    return decision


def test_a_permit_leads_to_its_own_route_alone() -> None:
    assert pool_of(permit("x"), make("x", "*")) == POOL
    with pytest.raises(Fault):
        pool_of(permit("y"), make("x", "*"))
    with pytest.raises(Fault):
        pool_of(permit("x"), replace(make("x", "*"), pool=None))

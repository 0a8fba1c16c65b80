"""Pools of routes.yaml: what they become, what survives a revision, and every fault at file and line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from foundation.fields import Fields
from foundation.reasons import Reason
from policies.lifecycle.strict_yaml import parse_yaml
from policies.lifecycle.upstreams_schema import schema
from policies.lifecycle.upstreams_yaml import pool_document, read_pool
from policies.lifecycle.workspace import WorkspaceInvalid
from policies.upstreams import (
    Address,
    Breaker,
    Discovery,
    HealthCheck,
    IdentityHeader,
    Outlier,
    Pool,
    Retries,
    UpstreamTls,
)
from tests.support.policy import workspace

FULL = """
upstreams:
  - name: store
    about: The store.
    addresses: [10.0.0.5:2379, "[2001:db8::1]:2379", store.internal:2379]
    networks: [10.0.0.0/8]
    tls: {fleet: true, spiffe_id: spiffe://fleet.example/service/store, client_certificate: true}
    health: {path: /health, host: store.internal, interval: 2s, timeout: 500ms, healthy: 3, unhealthy: 4}
    outlier: {consecutive_failures: 3, consecutive_5xx: 10, failure_percent: 40, share: 34, longest: 10m}
    breaker: {requests: 500, pending: 50, connections: 100}
    retries: {tries: 1, percent: 10, least: 5}
    slow_start: 30s
    panic: 30
    authenticates: connection
    proxy_protocol: v2
    identity: [sallyport, xfcc, assertion]
routes:
  - {name: r, upstreams: store, kinds: [node], retry_503: true}
  - {name: s, upstreams: store, kinds: [node], prefix: /s}
"""


def test_a_pool_says_everything_the_gateway_needs() -> None:
    found = workspace(routes=FULL, grants="grants: []").routes
    assert (
        found[0].pool
        == found[1].pool
        == Pool(
            name="store",
            addresses=(Address("10.0.0.5", 2379), Address("2001:db8::1", 2379), Address("store.internal", 2379)),
            networks=("10.0.0.0/8",),
            tls=UpstreamTls(fleet=True, spiffe_id="spiffe://fleet.example/service/store", client_certificate=True),
            health=HealthCheck("/health", "store.internal", 2.0, 0.5, 3, 4),
            outlier=Outlier(3, 10, 40, share=34, longest=600.0),
            breaker=Breaker(500, 50, 100),
            retries=Retries(1, 10, 5),
            slow_start=30.0,
            panic=30,
            per_identity=True,
            proxy_protocol=True,
            identity=(IdentityHeader.SALLYPORT, IdentityHeader.XFCC, IdentityHeader.ASSERTION),
        )
    )
    assert (found[0].retry_503, found[1].retry_503) == (True, False)


@pytest.mark.parametrize(
    ("where", "discovery", "dns"),
    [
        ("dns: api.internal:443, refresh: 5s", Discovery.DNS, Address("api.internal", 443)),
        ("srv: _api._tcp.internal, refresh: 5s", Discovery.SRV, Address("_api._tcp.internal", 0)),
    ],
)
def test_a_pool_may_be_a_name(where: str, discovery: Discovery, dns: Address) -> None:
    pool = pool_of(f"{{name: p, {where}}}")
    assert (pool.discovery, pool.dns, pool.addresses, pool.refresh) == (discovery, dns, (), 5.0)


def test_the_short_form_is_a_pool_of_the_routes_name() -> None:
    (route,) = workspace().routes
    assert route.pool == Pool("r", (Address("127.0.0.1", 80),))


def pool_of(text: str) -> Pool:
    routes = f"upstreams:\n  - {text}\nroutes:\n  - {{name: r, upstreams: p, kinds: [node]}}\n"
    pool = workspace(routes=routes, grants="grants: []").routes[0].pool
    assert pool is not None
    return pool


@pytest.mark.parametrize(
    ("text", "field", "detail"),
    [
        ("{name: p}", "addresses", "one of addresses, dns, srv"),
        ("{name: p, addresses: ['a:1'], dns: 'b:1'}", "dns", "one of addresses"),
        ("{name: p, addresses: []}", "addresses", "at least one"),
        ("{name: p, addresses: [a]}", "addresses", "host:port"),
        ("{name: p, addresses: ['http://a:1']}", "addresses", "host:port"),
        ("{name: p, addresses: ['a:65536']}", "addresses", "host:port"),
        ("{name: p, addresses: ['127.1:80']}", "addresses", "host:port"),
        ("{name: p, addresses: ['A:80']}", "addresses", "host:port"),
        ("{name: p, dns: '10.0.0.1:80'}", "dns", "a name"),
        ("{name: p, srv: api.internal}", "srv", "_service._tcp.name"),
        ("{name: p, srv: _a._tcp.b, tls: {}}", "tls", "proves no server"),
        ("{name: p, dns: 'a:1', refresh: 100ms}", "refresh", "1000ms"),
        ("{name: p, addresses: ['a:1'], refresh: 5s}", "", "unknown field 'refresh'"),
        ("{name: p, addresses: ['a:1'], networks: [10.0.0.1/8]}", "networks", "not a network"),
        ("{name: p, addresses: ['10.0.0.1:1'], networks: [10.0.0.0/8]}", "networks", "written out"),
        ("{name: p, addresses: ['a:1'], tls: {ca_file: relative}}", "tls.ca_file", "absolute"),
        ("{name: p, addresses: ['a:1'], tls: {ca_file: /ca, fleet: true}}", "tls.fleet", "not both"),
        ("{name: p, addresses: ['a:1'], tls: {spiffe_id: 'spiffe://a/service/b'}}", "tls.spiffe_id", "system's roots"),
        ("{name: p, addresses: ['a:1'], tls: {fleet: true, spiffe_id: b}}", "tls.spiffe_id", "spiffe://"),
        ("{name: p, addresses: ['a:1'], tls: {server_name: A}}", "tls.server_name", "lower case"),
        ("{name: p, addresses: ['a:1'], tls: {key: x}}", "tls", "unknown field 'key'"),
        ("{name: p, addresses: ['a:1'], health: {path: health}}", "health.path", "begins with /"),
        ('{name: p, addresses: ["a:1"], health: {path: "/a b"}}', "health.path", "begins with /"),
        ('{name: p, addresses: ["a:1"], health: {path: "/a\\r\\nx: y"}}', "health.path", "begins with /"),
        ("{name: p, addresses: ['a:1'], health: {interval: 1ms}}", "health.interval", "100ms"),
        ("{name: p, addresses: ['a:1'], outlier: {share: 101}}", "outlier.share", "100"),
        ("{name: p, addresses: ['a:1'], retries: {tries: 11}}", "retries.tries", "10"),
        ("{name: p, addresses: ['a:1'], breaker: {requests: -1}}", "breaker.requests", "whole number"),
        ("{name: p, addresses: ['a:1'], panic: 101}", "panic", "100"),
        ("{name: p, addresses: ['a:1'], authenticates: me}", "authenticates", "request, connection"),
        ("{name: p, addresses: ['a:1'], proxy_protocol: v1}", "proxy_protocol", "none, v2"),
        ("{name: p, addresses: ['a:1'], identity: [jwt]}", "identity", "sallyport, xfcc, assertion"),
        ("{name: P, addresses: ['a:1']}", "name", "a-z"),
    ],
)
def test_every_fault_is_at_its_line(text: str, field: str, detail: str) -> None:
    with pytest.raises(WorkspaceInvalid) as caught:
        pool_of(text)
    fault = caught.value.faults[0]
    assert fault.reason is Reason.POLICY_DATA_INVALID
    assert fault.field == f"routes.yaml:2 upstreams[0].{field}".rstrip(".")
    assert detail in fault.detail


@pytest.mark.parametrize(
    ("pools", "route", "field", "detail"),
    [
        ("[]", "upstreams: p", "routes[0].upstreams", "no pool"),
        ("[{name: r, addresses: ['a:1']}]", "upstreams: ['http://a']", "routes[0].upstreams", "a pool 'r' too"),
        ("[{name: p, addresses: ['a:1']}]", "upstreams: p, ca_file: /c", "routes[0].ca_file", "the pool's tls"),
        ("[]", "upstreams: ['http://a', 'https://a']", "routes[0].upstreams", "for all"),
        (
            "[{name: p, addresses: ['a:1']}, {name: p, addresses: ['a:1']}]",
            "upstreams: p",
            "upstreams[1].name",
            "twice",
        ),
    ],
)
def test_a_route_leads_to_one_pool_that_there_is(pools: str, route: str, field: str, detail: str) -> None:
    with pytest.raises(WorkspaceInvalid) as caught:
        workspace(routes=f"upstreams: {pools}\nroutes:\n  - {{name: r, {route}, kinds: [node]}}\n", grants="grants: []")
    (fault,) = caught.value.faults
    assert fault.field.endswith(field)
    assert detail in fault.detail


seconds = st.integers(1000, 86_400_000).map(lambda each: each / 1000)
counts, percents = st.integers(0, 100), st.integers(0, 100)
pools = st.builds(
    Pool,
    name=st.just("p"),
    addresses=st.just((Address("10.0.0.1", 1), Address("::1", 65_535), Address("a.b", 2))),
    networks=st.sampled_from([(), ("10.0.0.0/8", "fd00::/8")]),
    tls=st.one_of(
        st.none(),
        st.builds(UpstreamTls, server_name=st.sampled_from(["", "a.b"]), client_certificate=st.booleans()),
        st.just(UpstreamTls("/ca.pem", spiffe_id="spiffe://a/service/b")),
    ),
    health=st.one_of(
        st.none(),
        st.builds(
            HealthCheck, st.sampled_from(["", "/x?y=1"]), st.just("h"), seconds, seconds, *[st.integers(1, 100)] * 2
        ),
    ),
    outlier=st.builds(Outlier, counts, counts, percents, st.integers(1, 99), seconds, seconds, seconds, percents),
    breaker=st.builds(Breaker, counts, counts, counts),
    retries=st.builds(Retries, st.integers(0, 10), percents, counts),
    slow_start=st.one_of(st.just(0.0), seconds),
    panic=percents,
    per_identity=st.booleans(),
    proxy_protocol=st.booleans(),
    identity=st.lists(st.sampled_from(IdentityHeader), unique=True).map(tuple),
)


def again(pool: Pool) -> Pool:
    document: dict[str, Any] = pool_document(pool)
    fields = Fields(document, "pools[0]", Reason.REVISION_MALFORMED)
    found = read_pool(fields, pool.name)
    fields.finish()
    return found


VALIDATOR = Draft202012Validator(schema())


def test_the_schema_is_one_and_takes_what_the_parser_takes() -> None:
    Draft202012Validator.check_schema(schema())
    document = parse_yaml(FULL.encode(), "routes.yaml").value
    assert list(VALIDATOR.iter_errors(document)) == []


@pytest.mark.parametrize(
    "text",
    [
        "{name: p}",
        "{name: p, addresses: ['a:1'], dns: 'b:1'}",
        "{name: p, addresses: []}",
        "{name: p, addresses: ['http://a:1']}",
        "{name: p, addresses: ['a:1'], tls: {ca_file: /ca, fleet: true}}",
        "{name: p, addresses: ['a:1'], tls: {key: x}}",
        "{name: p, addresses: ['a:1'], health: {interval: 5}}",
        "{name: p, addresses: ['a:1'], identity: [jwt]}",
        "{name: p, addresses: ['a:1'], panic: 101}",
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(text: str) -> None:
    document = parse_yaml(f"upstreams:\n  - {text}\n".encode(), "routes.yaml").value
    assert list(VALIDATOR.iter_errors(document))
    with pytest.raises(WorkspaceInvalid):
        pool_of(text)


@given(pools)
def test_what_a_revision_carries_is_the_pool(pool: Pool) -> None:
    assert again(pool) == pool
    assert VALIDATOR.is_valid({"upstreams": [{"name": pool.name, **pool_document(pool)}]})
    for discovery, dns in ((Discovery.DNS, Address("a.b", 80)), (Discovery.SRV, Address("_a._tcp.b", 0))):
        named = replace(pool, addresses=(), discovery=discovery, dns=dns, refresh=1.5, tls=None)
        assert again(named) == named

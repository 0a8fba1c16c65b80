"""routes.yaml: for each route, what the gateway needs to know (`Route`) and what policy asks (`row`, for Rego); and the
pools that routes refer to by name (`upstreams_yaml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foundation.fields import Fields
from foundation.identifiers import Kind, check_name
from foundation.identity import AttestationClass
from policies.lifecycle.findings import Findings
from policies.lifecycle.paths import parse_prefix
from policies.lifecycle.strict_yaml import Document
from policies.lifecycle.upstreams_yaml import HOST, MAX_ADDRESSES, check_ca_file, is_dialable, read_pool
from policies.routes import Priority, Route, RouteClass, RouteType
from policies.upstreams import Address, Pool, UpstreamTls

API_PREFIX = "api."  # routes of our own API; no route of a workspace may look like one
TIERS = range(1, 4)
# From strong to weak: a route that asks for one class takes those before it too.
_STRENGTH = (AttestationClass.HARDWARE, AttestationClass.VIRTUAL, AttestationClass.NONE)
_UPSTREAM = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_UPGRADES = ("websocket", "spdy/3.1", "tcp")


@dataclass(slots=True)
class Routes:
    """The routes of the file and, by name, their rows for Rego. `types` also holds those that are not valid, so that a
    grant on one of them is no second finding."""

    routes: dict[str, Route] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    types: dict[str, RouteType] = field(default_factory=dict)

    @property
    def requests(self) -> frozenset[str]:
        """Those of which each request is decided."""
        between_nodes = {name for name, route in self.routes.items() if route.protocol == "http"}
        return frozenset(between_nodes | {name for name, kind in self.types.items() if kind is RouteType.HTTP})


def read_routes(document: Document, findings: Findings, segments: frozenset[str], least: AttestationClass) -> Routes:
    """The routes of the file. `least` is the weakest attestation that any of them may accept."""
    found = Routes()
    pools: dict[str, Pool | None] = {}  # None: it is there, and not valid
    places: dict[tuple[str, tuple[str, ...]], str] = {}

    def read(item: Fields) -> None:
        name = findings.name(item, "name", taken=found.types)
        if name.startswith(API_PREFIX):
            raise item.fault("name", f"names that begin with {API_PREFIX!r} are those of our own API")
        found.types[name] = RouteType(item.one_of("type", tuple(RouteType), RouteType.HTTP))
        route = _route(item, name, found.types[name], pools)
        found.routes[name], found.rows[name] = route, _row(item, route, segments, least)
        holder = places.setdefault((route.host, route.prefix), name) if route.type is RouteType.HTTP else name
        if holder != name:
            raise item.fault("prefix", f"route {holder!r} has the same host and prefix")

    def read_upstream(item: Fields) -> None:
        name = findings.name(item, "name", taken=pools)
        pools[name] = None
        pools[name] = read_pool(item, name)

    with findings.collecting(document):
        fields = document.fields()
        findings.each(document, fields, "upstreams", read_upstream)
        findings.each(document, fields, "routes", read)
        fields.finish()
    return found


def _route(item: Fields, name: str, route_type: RouteType, pools: Mapping[str, Pool | None]) -> Route:
    item.text("about", "")
    route_class = RouteClass(item.one_of("class", tuple(RouteClass), RouteClass.STANDARD))
    priority = Priority(item.one_of("priority", tuple(Priority), Priority.NORMAL))
    if route_type is RouteType.STREAM:
        service = check_name(item.text("service"), field=f"{item.path}.service")
        return Route(
            name,
            RouteType.STREAM,
            "",
            (),
            None,
            route_class,
            service=service,
            protocol=item.one_of("protocol", ("tcp", "udp", "http"), "tcp"),
            priority=priority,
            idle_timeout=_bound(item, "idle_timeout"),
            timeout=_bound(item, "timeout"),
        )
    return Route(
        name=name,
        type=RouteType.HTTP,
        host=_host(item),
        prefix=parse_prefix(item, "prefix"),
        pool=_pool(item, name, pools),
        route_class=route_class,
        upgrades=_some_of(item, "upgrades", _UPGRADES) if item.has("upgrades") else (),
        max_body=item.size("max_body") if item.has("max_body") else 1 << 40,
        connect_timeout=_timeout(item, "connect_timeout", "5s"),
        response_timeout=_timeout(item, "response_timeout", "60s"),
        idle_timeout=_bound(item, "idle_timeout"),
        timeout=_bound(item, "timeout"),
        priority=priority,
        retry_503=item.flag("retry_503", False),
    )


def _row(item: Fields, route: Route, segments: frozenset[str], least: AttestationClass) -> dict[str, Any]:
    row: dict[str, Any] = {
        "type": route.type.value,
        "class": route.route_class.value,
        "kinds": list(_some_of(item, "kinds", tuple(Kind))),
        "attestation": _attestation(item, least),
    }
    if route.service:
        row["service"] = route.service  # what the target node compares (agent/offer.py)
    if item.has("tiers"):
        row["tiers"] = read_tiers(item)
    if item.has("segments"):
        row["segments"] = list(_some_of(item, "segments", tuple(sorted(segments))))
    if item.has("to"):
        if route.type is not RouteType.STREAM:
            raise item.fault("to", "only a stream leads to a node, which is in a segment")
        row["to"] = list(_some_of(item, "to", tuple(sorted(segments))))
    return row


def read_tiers(item: Fields) -> list[int]:
    """The list `tiers`, without doubles. Raises `Fault`."""
    tiers = item.integers("tiers", least=TIERS[0], most=TIERS[-1], count=len(TIERS))
    if not tiers:
        raise item.fault("tiers", "an empty list allows nothing; leave the field out to name no limit")
    return sorted(set(tiers))


def _attestation(item: Fields, least: AttestationClass) -> list[str]:
    """The classes that meet the route's requirement: `virtual` and better unless the route says otherwise."""
    floor = _STRENGTH.index(least)
    default = _STRENGTH[min(floor, _STRENGTH.index(AttestationClass.VIRTUAL))]
    asked = _STRENGTH.index(AttestationClass(item.one_of("attestation", tuple(AttestationClass), default)))
    if asked > floor:
        raise item.fault("attestation", f"this profile asks for {least.value} at least")
    return [found.value for found in _STRENGTH[: asked + 1]]


def _some_of(item: Fields, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    values = item.texts(name)
    if not values:
        raise item.fault(name, "an empty list allows nothing; leave the field out to name no limit")
    for value in values:
        if value not in allowed:
            raise item.fault(name, f"{value[:64]!r} is none of {', '.join(allowed) or '(there are none)'}")
    return tuple(dict.fromkeys(str(value) for value in values))


def _host(item: Fields) -> str:
    host = item.text("host", "*", max_length=253)
    if host != "*" and not HOST.fullmatch(host):
        raise item.fault("host", "expected a host name in lower case without port, or '*'")
    return host


def _bound(item: Fields, name: str) -> float:
    """Seconds; 0, no bound, when it is not named."""
    return _timeout(item, name, "") if item.has(name) else 0.0


def _timeout(item: Fields, name: str, default: str) -> float:
    seconds = item.duration(name, default)
    if not 0.01 <= seconds <= 86_400:
        raise item.fault(name, "expected from 10ms to 1d")
    return seconds


def _pool(item: Fields, route: str, pools: Mapping[str, Pool | None]) -> Pool | None:
    """The pool that `upstreams` names, or the one of the URLs listed there. None stands for one with findings of its
    own."""
    if item.is_text("upstreams"):
        name = item.text("upstreams")
        if name not in pools:
            raise item.fault("upstreams", f"{name[:64]!r} is no pool of the section upstreams")
        if item.has("ca_file"):
            raise item.fault("ca_file", "stands with the pool's tls")
        return pools[name]
    if route in pools:
        raise item.fault("upstreams", f"there is a pool {route!r} too; refer to it, or rename one")
    return _own_pool(item, route)


def _own_pool(item: Fields, route: str) -> Pool:
    ca_file = check_ca_file(item)
    urls = [_url(item, text) for text in item.texts("upstreams", most=MAX_ADDRESSES)]
    if not urls:
        raise item.fault("upstreams", "at least one is needed")
    tls = urls[0][0]
    if any(each != tls for each, _ in urls):
        raise item.fault("upstreams", "expected http:// for all of them, or https:// for all")
    if ca_file and not tls:
        raise item.fault("ca_file", "is for https:// upstreams")
    addresses = tuple(dict.fromkeys(address for _, address in urls))
    return Pool(route, addresses, tls=UpstreamTls(ca_file) if tls else None)


def _url(item: Fields, url: str) -> tuple[bool, Address]:
    """Whether it is TLS, and where."""
    match = _UPSTREAM.fullmatch(url)
    if not match or not is_dialable(match[2]) or int(match[3] or 1) > 65_535:
        raise item.fault("upstreams", f"{url[:128]!r} is not http://host:port or https://host:port")
    tls = match[1] == "https"
    return tls, Address(match[2].strip("[]"), int(match[3] or (443 if tls else 80)))

"""The section `upstreams` of routes.yaml: pools that routes refer to by name.

One form for what people write and what a revision carries: `read_pool` reads both, `pool_document` writes the latter.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId
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

MAX_ADDRESSES = 256
MAX_NETWORKS = 64
HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII)
_SERVICE = re.compile(r"(?=.{1,253}\Z)_[a-z0-9-]{1,62}\._(tcp|udp)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+", re.ASCII)
_HOST_AND_PORT = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+):([1-9][0-9]{0,4})", re.ASCII)
_FILE = re.compile(r"(/[A-Za-z0-9_.-]+)+", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9/._~!$&'()*+,=:@%?-]{0,1023}", re.ASCII)
_DAY = 86_400.0
_DEFAULT = Pool("")


def read_pool(item: Fields, name: str) -> Pool:
    """The pool `name` in `item`. Raises `Fault` with the reason of `item`, at its field."""
    item.text("about", "")
    addresses, discovery, dns = _where(item)
    pool = Pool(
        name=name,
        addresses=addresses,
        discovery=discovery,
        dns=dns,
        refresh=_seconds(item, "refresh", _DEFAULT.refresh, least=1.0) if dns else _DEFAULT.refresh,
        networks=_networks(item),
        tls=_tls(item.section("tls")) if item.has("tls") else None,
        health=_health(item.section("health")) if item.has("health") else None,
        outlier=_outlier(item.section("outlier", optional=True)),
        breaker=_breaker(item.section("breaker", optional=True)),
        retries=_retries(item.section("retries", optional=True)),
        slow_start=_seconds(item, "slow_start", _DEFAULT.slow_start, least=0.0),
        panic=item.integer("panic", _DEFAULT.panic, most=100),
        per_identity=item.one_of("authenticates", ("request", "connection"), "request") == "connection",
        proxy_protocol=item.one_of("proxy_protocol", ("none", "v2"), "none") == "v2",
        identity=_identity(item),
    )
    if pool.discovery is Discovery.STATIC and pool.networks and all(_is_ip(each.host) for each in pool.addresses):
        raise item.fault("networks", "is for names that are looked up; these addresses are written out")
    if pool.discovery is Discovery.SRV and pool.tls is not None and not (pool.tls.server_name or pool.tls.spiffe_id):
        raise item.fault("tls", "needs server_name or spiffe_id: what DNS answers proves no server (RFC 6125 §6.2.1)")
    return pool


def pool_document(pool: Pool) -> dict[str, Any]:
    """`pool` as `read_pool` reads it, without its name."""
    document: dict[str, Any] = {
        "networks": list(pool.networks),
        "outlier": _section(asdict(pool.outlier), "interval", "ejection", "longest"),
        "breaker": asdict(pool.breaker),
        "retries": asdict(pool.retries),
        "slow_start": _duration(pool.slow_start),
        "panic": pool.panic,
        "authenticates": "connection" if pool.per_identity else "request",
        "proxy_protocol": "v2" if pool.proxy_protocol else "none",
        "identity": [each.value for each in pool.identity],
    }
    if pool.discovery is Discovery.STATIC:
        document["addresses"] = [str(each) for each in pool.addresses]
    elif pool.dns is not None:
        where = str(pool.dns) if pool.discovery is Discovery.DNS else pool.dns.host
        document |= {pool.discovery.value: where, "refresh": _duration(pool.refresh)}
    if pool.tls is not None:
        document["tls"] = {key: value for key, value in asdict(pool.tls).items() if value}
    if pool.health is not None:
        document["health"] = _section(asdict(pool.health), "interval", "timeout")
    return document


def check_ca_file(item: Fields) -> str:
    """The absolute path in `ca_file`, or an empty text. Raises `Fault`."""
    ca_file = item.text("ca_file", "", max_length=1024)
    if ca_file and not _FILE.fullmatch(ca_file):
        raise item.fault("ca_file", "expected an absolute path")
    return ca_file


def is_dialable(host: str) -> bool:
    """Whether `host` is a host name, an IPv4 address in its one spelling, or an IPv6 address in brackets. A last label
    that begins with a digit is no host name: resolvers read `127.1` and `0x7f000001` as addresses."""
    if not host.startswith("[") and not host.rpartition(".")[2][:1].isdigit():
        return HOST.fullmatch(host) is not None
    try:
        version = ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return False
    return (version == 6) is host.startswith("[")


def _where(item: Fields) -> tuple[tuple[Address, ...], Discovery, Address | None]:
    """Exactly one of `addresses`, `dns`, `srv`."""
    given = [name for name in ("addresses", "dns", "srv") if item.has(name)]
    if len(given) != 1:
        raise item.fault(given[1] if given else "addresses", "expected one of addresses, dns, srv")
    if given == ["dns"]:
        return (), Discovery.DNS, _address(item, "dns", item.text("dns", max_length=300), name_only=True)
    if given == ["srv"]:
        service = item.text("srv", max_length=253)
        if not _SERVICE.fullmatch(service):
            raise item.fault("srv", "expected _service._tcp.name in lower case")
        return (), Discovery.SRV, Address(service, 0)
    texts = item.texts("addresses", most=MAX_ADDRESSES)
    addresses = tuple(dict.fromkeys(_address(item, "addresses", text) for text in texts))
    if not addresses:
        raise item.fault("addresses", "at least one is needed")
    return addresses, Discovery.STATIC, None


def _address(item: Fields, field: str, text: str, *, name_only: bool = False) -> Address:
    match = _HOST_AND_PORT.fullmatch(text)
    if not match or not is_dialable(match[1]) or int(match[2]) > 65_535:
        raise item.fault(field, f"{text[:128]!r} is not host:port, in lower case")
    address = Address(match[1].strip("[]"), int(match[2]))
    if name_only and _is_ip(address.host):
        raise item.fault(field, "expected a name; list addresses under `addresses`")
    return address


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _networks(item: Fields) -> tuple[str, ...]:
    networks = item.texts("networks", (), most=MAX_NETWORKS)
    for network in networks:
        try:
            canonical = str(ipaddress.ip_network(network))
        except ValueError:
            canonical = ""
        if canonical != network:
            raise item.fault("networks", f"{network[:64]!r} is not a network such as 10.0.0.0/8 or fd00::/8")
    return networks


def _tls(fields: Fields) -> UpstreamTls:
    tls = UpstreamTls(
        ca_file=check_ca_file(fields),
        fleet=fields.flag("fleet", False),
        server_name=fields.text("server_name", "", max_length=253),
        spiffe_id=fields.text("spiffe_id", "", max_length=2048),
        client_certificate=fields.flag("client_certificate", False),
    )
    fields.finish()
    if tls.server_name and not HOST.fullmatch(tls.server_name):
        raise fields.fault("server_name", "expected a host name in lower case")
    if tls.ca_file and tls.fleet:
        raise fields.fault("fleet", "expected ca_file or fleet, not both")
    if tls.spiffe_id:
        _check_spiffe_id(fields, tls)
    return tls


def _check_spiffe_id(fields: Fields, tls: UpstreamTls) -> None:
    if not (tls.ca_file or tls.fleet):
        raise fields.fault("spiffe_id", "needs ca_file or fleet: the system's roots vouch for no SPIFFE ID")
    try:
        SpiffeId.parse(tls.spiffe_id)
    except Fault as fault:
        raise fields.fault("spiffe_id", fault.detail) from None


def _health(fields: Fields) -> HealthCheck:
    default = HealthCheck()
    check = HealthCheck(
        path=fields.text("path", "", max_length=1024),
        host=fields.text("host", "", max_length=253),
        interval=_seconds(fields, "interval", default.interval, least=0.1),
        timeout=_seconds(fields, "timeout", default.timeout, least=0.01),
        healthy=fields.integer("healthy", default.healthy, least=1, most=100),
        unhealthy=fields.integer("unhealthy", default.unhealthy, least=1, most=100),
    )
    fields.finish()
    if check.path and not _PATH.fullmatch(check.path):
        raise fields.fault("path", "expected a path that begins with /")
    if check.host and not HOST.fullmatch(check.host):
        raise fields.fault("host", "expected a host name in lower case")
    return check


def _outlier(fields: Fields) -> Outlier:
    default = Outlier()
    outlier = Outlier(
        consecutive_failures=fields.integer("consecutive_failures", default.consecutive_failures, most=1000),
        consecutive_5xx=fields.integer("consecutive_5xx", default.consecutive_5xx, most=1000),
        failure_percent=fields.integer("failure_percent", default.failure_percent, most=100),
        volume=fields.integer("volume", default.volume, least=1, most=1_000_000),
        interval=_seconds(fields, "interval", default.interval, least=0.5),
        ejection=_seconds(fields, "ejection", default.ejection, least=0.1),
        longest=_seconds(fields, "longest", default.longest, least=0.1),
        share=fields.integer("share", default.share, most=100),
    )
    fields.finish()
    return outlier


def _breaker(fields: Fields) -> Breaker:
    breaker = Breaker(
        requests=fields.integer("requests", 0, most=1_000_000),
        pending=fields.integer("pending", 0, most=1_000_000),
        connections=fields.integer("connections", 0, most=65_536),
    )
    fields.finish()
    return breaker


def _retries(fields: Fields) -> Retries:
    default = Retries()
    retries = Retries(
        tries=fields.integer("tries", default.tries, most=10),
        percent=fields.integer("percent", default.percent, most=100),
        least=fields.integer("least", default.least, most=1000),
    )
    fields.finish()
    return retries


def _identity(item: Fields) -> tuple[IdentityHeader, ...]:
    values = item.texts("identity", _DEFAULT.identity, most=len(IdentityHeader))
    for value in values:
        if value not in tuple(IdentityHeader):
            raise item.fault("identity", f"{value[:64]!r} is none of {', '.join(IdentityHeader)}")
    return tuple(dict.fromkeys(IdentityHeader(value) for value in values))


def _seconds(fields: Fields, name: str, default: float, *, least: float) -> float:
    seconds = fields.duration(name, _duration(default))
    if not least <= seconds <= _DAY:
        raise fields.fault(name, f"expected from {_duration(least)} to 1d")
    return seconds


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _section(values: Mapping[str, Any], *durations: str) -> dict[str, Any]:
    return {key: _duration(value) if key in durations else value for key, value in values.items()}

"""The ruleset that a wall stands for: one table, `inet sallyport`. Pure values.

Laws held here:
- it is made of objects, never of text: what is in a wall is a network, and is written as one;
- it holds nothing but the one table, whose chains accept by default: what is neither from nor to a network of nodes is
  not looked at, and what other tables drop stays dropped;
- between nodes everything is dropped, in both directions and through this machine too, connections that were open
  before included: only the exceptions are let through, and of gateways only what this machine began;
- IPv6 goes on to work: neighbours and routers are found, paths are measured. Addresses that are good on a link alone
  (fe80::/10) are those of nodes too, or two nodes on one link would talk past the rules.

The objects are those of libnftables' JSON (libnftables-json(5)), as `nft -j list table` gives them back.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from agent.firewall.wall import Network, Wall, of_version

FAMILY, TABLE = "inet", "sallyport"
CHAINS = ("input", "output", "forward")
Object = dict[str, Any]
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")  # RFC 4291 §2.5.6
_OURS = {"family": FAMILY, "table": TABLE}
_ACCEPT, _DROP = {"accept": None}, {"drop": None}
_COUNTER = {"counter": {"packets": 0, "bytes": 0}}
_PROTOCOLS = {4: "ip", 6: "ip6"}
_NEIGHBOURS = ("nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert")  # RFC 4861
_LISTENERS = ("mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report")  # RFC 3810
_ERRORS = ("destination-unreachable", "time-exceeded", "parameter-problem")  # RFC 792, RFC 4443


def ruleset(wall: Wall) -> tuple[Object, ...]:
    """The table with its sets, chains and rules."""
    return ({"table": {"family": FAMILY, "name": TABLE}}, *_sets(wall), *map(_chain, CHAINS), *_rules())


def replacement(wall: Wall) -> bytes:
    """Input of `nft -j -f -` that puts `ruleset(wall)` in the place of whatever table of that name there is. The kernel
    takes all of it at once or nothing (nft(8): one file is one transaction)."""
    table = {"table": {"family": FAMILY, "name": TABLE}}
    return _encoded([{"add": table}, {"delete": table}, *({"add": each} for each in ruleset(wall))])


def refill(wall: Wall) -> bytes:
    """As `replacement`, for a table whose sets and chains are the right ones: what they hold is exchanged, in one
    transaction too. A table that is made anew lets a few packets through under load, on kernels of today (Linux 6.18: 9
    of 56,000 within 40 replacements), because its new sets of ranges are asked before they are full; this does not.
    """
    objects = ruleset(wall)
    sets = [each["set"] for each in objects if "set" in each]
    emptied = [{"set": {**_OURS, "name": each["name"]}} for each in sets]
    emptied += [{"chain": {**_OURS, "name": name}} for name in CHAINS]
    filled = [{"element": {**_OURS, "name": each["name"], "elem": each["elem"]}} for each in sets if "elem" in each]
    rules = [each for each in objects if "rule" in each]
    return _encoded([*({"flush": each} for each in emptied), *({"add": each} for each in (*filled, *rules))])


def removal() -> bytes:
    """Input of `nft -j -f -` that leaves no table of that name, whether there is one or not."""
    table = {"table": {"family": FAMILY, "name": TABLE}}
    return _encoded([{"add": table}, {"delete": table}])


def _encoded(commands: Sequence[Object]) -> bytes:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *commands]}).encode()


def _sets(wall: Wall) -> Iterator[Object]:
    nodes = (*wall.nodes, _LINK_LOCAL) if wall.nodes else ()
    for name, networks in (("nodes", nodes), ("reach", wall.reach), ("allow", wall.allow)):
        for version in _PROTOCOLS:
            elements = [_element(each) for each in of_version(networks, version)]
            made = {**_OURS, "name": f"{name}{version}", "type": f"ipv{version}_addr", "flags": ["interval"]}
            yield {"set": made | ({"elem": elements} if elements else {})}


def _element(network: Network) -> Any:
    address = str(network.network_address)
    if network.prefixlen == network.max_prefixlen:
        return address
    return {"prefix": {"addr": address, "len": network.prefixlen}}


def _chain(name: str) -> Object:
    return {"chain": {**_OURS, "name": name, "type": "filter", "hook": name, "prio": 0, "policy": "accept"}}


def _rules() -> Iterator[Object]:
    yield _rule("input", "this machine itself", _interface("iifname"), _ACCEPT)
    yield _rule("output", "this machine itself", _interface("oifname"), _ACCEPT)
    for chain in ("input", "output"):
        hops = _equal(_field("ip6", "hoplimit"), 255)  # RFC 4861 §7.1: from this link
        yield _rule(chain, "neighbours and routers", hops, _types("icmpv6", _NEIGHBOURS), _ACCEPT)
        yield _rule(chain, "listeners", _types("icmpv6", _LISTENERS), _ACCEPT)
        yield from _dhcp(chain)
    for chain in ("input", "forward"):
        yield _rule(chain, "errors about what passed", _types("icmp", _ERRORS), _state("related"), _ACCEPT)
        errors = _types("icmpv6", (*_ERRORS, "packet-too-big"))
        yield _rule(chain, "errors about what passed", errors, _state("related"), _ACCEPT)
    for chain, ends in (("input", ("saddr",)), ("output", ("daddr",)), ("forward", ("saddr", "daddr"))):
        for end in ends:
            yield from _exceptions(chain, end)
        for end in ends:
            yield from _walls(chain, end)


def _dhcp(chain: str) -> Iterator[Object]:
    """Leases (RFC 2131 §4.1, RFC 8415 §7.2): between the server's port and this machine's."""
    for nfproto, server, client in (("ipv4", 67, 68), ("ipv6", 547, 546)):
        source, destination = (server, client) if chain == "input" else (client, server)
        ports = (_equal(_field("udp", "sport"), source), _equal(_field("udp", "dport"), destination))
        yield _rule(chain, "DHCP", _equal({"meta": {"key": "nfproto"}}, nfproto), *ports, _ACCEPT)


def _exceptions(chain: str, end: str) -> Iterator[Object]:
    for version, protocol in _PROTOCOLS.items():
        answers = (_state("established"),) if end == "saddr" else ()
        inside = _equal(_field(protocol, end), f"@reach{version}")
        yield _rule(chain, "gateways and authority", inside, *answers, _ACCEPT)
        yield _rule(chain, "allowed by settings", _equal(_field(protocol, end), f"@allow{version}"), _ACCEPT)


def _walls(chain: str, end: str) -> Iterator[Object]:
    for version, protocol in _PROTOCOLS.items():
        which = "from a node" if end == "saddr" else "to a node"
        yield _rule(chain, which, _equal(_field(protocol, end), f"@nodes{version}"), _DROP)


def _rule(chain: str, comment: str, *statements: Object) -> Object:
    *matches, verdict = statements
    return {"rule": {**_OURS, "chain": chain, "comment": comment, "expr": [*matches, _COUNTER, verdict]}}


def _equal(left: Object, right: Any) -> Object:
    return {"match": {"op": "==", "left": left, "right": right}}


def _field(protocol: str, name: str) -> Object:
    return {"payload": {"protocol": protocol, "field": name}}


def _interface(key: str) -> Object:
    return _equal({"meta": {"key": key}}, "lo")


def _types(protocol: str, names: Iterable[str]) -> Object:
    return _equal(_field(protocol, "type"), {"set": sorted(names)})


def _state(name: str) -> Object:
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": name}}

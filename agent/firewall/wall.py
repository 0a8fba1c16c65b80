"""What the firewall keeps apart: the networks in which nodes live, and who may be reached inside them all the same.
Pure values; every network in here was parsed by `ipaddress`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_NETWORKS = 4096  # as policy allows in a workspace
MAX_EXCEPTIONS = 256
MAX_WALL_BYTES = 1 << 20
_WIDEST = {4: 8, 6: 16}
"""The shortest prefix of a network of nodes, by IP version: by a wider one this machine would cut itself off."""


@dataclass(frozen=True, slots=True)
class Wall:
    """`nodes`: where nodes live; from there and to there nothing passes. `reach`: gateways and authority, to which
    connections may be opened. `allow`: what the machine's settings let through both ways. An exception holds inside
    `nodes`; whatever is outside is not looked at. Raises `Fault(FIREWALL_NETWORK)`."""

    nodes: tuple[Network, ...] = ()
    reach: tuple[Network, ...] = ()
    allow: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        if len(self.nodes) > MAX_NETWORKS or len(self.reach) + len(self.allow) > MAX_EXCEPTIONS:
            raise Fault(Reason.FIREWALL_NETWORK, f"more than {MAX_NETWORKS} networks or {MAX_EXCEPTIONS} exceptions")
        for network in self.nodes:
            if network.prefixlen < _WIDEST[network.version] or network.is_loopback or network.is_multicast:
                raise Fault(Reason.FIREWALL_NETWORK, f"{network} is no network of nodes")

    def to_json(self) -> dict[str, list[str]]:
        return {"nodes": _texts(self.nodes), "reach": _texts(self.reach), "allow": _texts(self.allow)}

    @classmethod
    def parse(cls, fields: Fields) -> Wall:
        """What `to_json` gave. Raises `Fault`."""
        wall = cls(
            parsed(fields.texts("nodes", most=MAX_NETWORKS)),
            parsed(fields.texts("reach", most=MAX_EXCEPTIONS)),
            parsed(fields.texts("allow", most=MAX_EXCEPTIONS)),
        )
        fields.finish()
        return wall


def networks_of(data: Mapping[str, Any]) -> tuple[Network, ...]:
    """The networks of all segments, by `data` of a signed revision (Rego's `data`, as `CompiledPolicy` has it); none
    where the workspace names none. Raises `Fault(FIREWALL_NETWORK)`."""
    by_segment = data.get("workspace", {}).get("networks", {})
    if not isinstance(by_segment, Mapping) or not all(isinstance(each, list) for each in by_segment.values()):
        raise Fault(Reason.FIREWALL_NETWORK, "the revision's networks are no lists by segment")
    return parsed(text for texts in by_segment.values() for text in texts)


def parsed(texts: Iterable[Any]) -> tuple[Network, ...]:
    """Networks from addresses and CIDR blocks, in order, each once. Raises `Fault(FIREWALL_NETWORK)`."""
    found: set[Network] = set()
    for text in texts:
        try:
            if not isinstance(text, str) or "%" in text:  # `ipaddress` takes numbers, and any text as an IPv6 zone
                raise ValueError
            found.add(ipaddress.ip_network(text))
        except ValueError:
            raise Fault(Reason.FIREWALL_NETWORK, f"{str(text)[:64]!r} is no network") from None
    return tuple(sorted(found, key=_by_version))


def of_version(networks: Iterable[Network], version: int) -> tuple[Network, ...]:
    """Those of IPv4 or IPv6, as few as hold the same addresses, in order."""
    if version == 4:
        return tuple(ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network)))
    return tuple(ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network)))


def _by_version(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _texts(networks: Iterable[Network]) -> list[str]:
    return [str(each) for each in networks]

"""What of the answers of DNS may be dialled, and when to ask again. Pure values.

Laws held here:
- a name leads to loopback, link-local, metadata and other special addresses only when the pool lists their network: who
  controls a DNS zone does not control whom we dial (server-side request forgery, DNS rebinding);
- an address written inside another (IPv4 in IPv6) is judged by what it leads to;
- answers are bounded in number, and never asked for more often than once a second.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_ANSWERS = 256
LEAST_REFRESH = 1.0
# Where clouds answer for their machines' secrets, besides 169.254.0.0/16, which is link-local.
_METADATA = frozenset(
    ipaddress.ip_address(each) for each in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052 §2.1
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122 §3.2.1.3; Linux takes 0.0.0.0 for loopback


def may_dial(name: str, answer: str, networks: tuple[str, ...]) -> bool:
    """Whether `answer`, an IP address that DNS gave for `name`, may be dialled. With `networks`, whether it lies in one
    of them; otherwise whether it is an ordinary unicast address. `localhost` is loopback (RFC 6761 §6.3)."""
    try:
        address = _inner(ipaddress.ip_address(answer))
    except ValueError:
        return False
    if networks:
        return any(address in _network(each) for each in networks)
    if address.is_loopback:
        return name == "localhost" or name.endswith(".localhost")
    return not _is_special(address)


def acceptable(name: str, answers: Iterable[str], networks: tuple[str, ...]) -> tuple[str, ...]:
    """The answers that may be dialled, each once, in their canonical spelling and order, at most `MAX_ANSWERS`."""
    kept = {str(ipaddress.ip_address(each)) for each in answers if may_dial(name, each, networks)}
    return tuple(sorted(kept)[:MAX_ANSWERS])


def refresh_after(ttl: float, longest: float) -> float:
    """Seconds until the next look-up of records with this TTL."""
    return max(LEAST_REFRESH, min(ttl, longest))


def _is_special(address: IPAddress) -> bool:
    return (
        address in _METADATA
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and address.version == 4)
        or (address.version == 4 and address in _THIS_NETWORK)
    )


def _inner(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):  # the latter: IPv4-compatible
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


@lru_cache(maxsize=1024)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)

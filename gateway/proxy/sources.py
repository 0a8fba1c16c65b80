"""How many handshakes one source address may begin: a handshake costs us more than it costs a stranger.

Laws held here:
- a source is an IPv4 address, or the /64 of an IPv6 address, for a host may use all addresses of its own /64;
- the table is bounded: the source that was not seen for the longest goes first, and with it what it had used up.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

MAX_SOURCES = 65_536
ROUNDING = 1e-6  # seconds that sums of times may be off by


class SourceRates:
    """A token bucket for each source (as one number each: when it will be full again)."""

    def __init__(self, per_second: int, burst: int, most: int = MAX_SOURCES) -> None:
        self._interval = 1.0 / per_second
        self._span = burst / per_second  # seconds in which an empty bucket fills
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def admits(self, address: str, now: float) -> bool:
        """Whether `address` may begin a handshake at `now` (monotonic seconds), which is counted then."""
        source = source_of(address)
        full_at = max(now, self._full_at.pop(source, now)) + self._interval
        admitted = full_at - now <= self._span + ROUNDING
        self._full_at[source] = full_at if admitted else full_at - self._interval
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return admitted

    def __len__(self) -> int:
        return len(self._full_at)


@lru_cache(maxsize=1024)
def source_of(address: str) -> str:
    """The source that `address`, as the socket gives it, counts for. What is no IP address is a source of its own."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return found.packed[:8].hex()

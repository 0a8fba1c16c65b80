"""How often one source may ask, in a table that never grows beyond its bound.

Pure: times are handed in. The oldest sources make room for new ones; a source that was pushed out begins with a full
bucket, so that the bound costs strictness and never lets the table grow (who commands that many addresses is met by
the cap on connections).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

MAX_SOURCES = 10_000


class RateTable:
    """Token buckets by source: `burst` at once, `per_minute` in the long run."""

    def __init__(self, burst: int, per_minute: int, *, most: int = MAX_SOURCES) -> None:
        self._burst = float(burst)
        self._per_second = per_minute / 60
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str, now: float) -> bool:
        """Whether `source` may ask once more at `now` (monotonic seconds)."""
        level, at = self._buckets.pop(source, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._per_second)
        allowed = level >= 1
        self._buckets[source] = (level - 1 if allowed else level, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return allowed

    def __len__(self) -> int:
        return len(self._buckets)


def source_of(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that one IPv6 customer has at least."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)

"""What happens when the region is cut off: age of the facts → class → behaviour by route class.

The authority says that the facts are whole: to a gateway by each heartbeat, to a node by each bundle. Without that
they age:

| age of the last such word | class   | critical route | standard route | tolerant route |
|---------------------------|---------|----------------|----------------|----------------|
| under `stale_after`       | fresh   | policy decides | policy decides | policy decides |
| under `expired_after`     | stale   | denied         | policy decides | policy decides |
| over it                   | expired | denied         | denied         | policy decides |

The default policy holds this table (`policies/rego`); who decides gives it the class, never the age, so that a
decision may be cached. Certificates and attestations end trust by themselves, whatever the route's class.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundation.fields import Fields
from policies.model import FOREVER, Staleness


@dataclass(frozen=True, slots=True)
class StalenessSettings:
    """Section `[gateway.staleness]`, seconds; a node has them from its authority, with the bundle."""

    stale_after: float = 30.0
    expired_after: float = 3600.0

    @classmethod
    def parse(cls, fields: Fields) -> StalenessSettings:
        settings = cls(fields.duration("stale_after", "30s"), fields.duration("expired_after", "1h"))
        if settings.stale_after < 10 or settings.expired_after < settings.stale_after:
            raise fields.fault("stale_after", "expected at least 10s (two heartbeats) and at most expired_after")
        fields.finish()
        return settings


def staleness(heartbeat_at: float, now: float, settings: StalenessSettings) -> tuple[Staleness, float]:
    """The class of facts last confirmed at `heartbeat_at`, and the time at which the next class begins; both times in
    seconds since the Unix epoch."""
    age = now - heartbeat_at
    if age < settings.stale_after:
        return Staleness.FRESH, heartbeat_at + settings.stale_after
    if age < settings.expired_after:
        return Staleness.STALE, heartbeat_at + settings.expired_after
    return Staleness.EXPIRED, FOREVER

"""What this node offers to others, by the signed revision that it holds: judged here, whatever a gateway says.

Laws held here:
- the gateway's word that a caller may come is necessary and never enough: route, service, kind and segment must also
  be those of the signed revision on this node (a gateway led astray joins nothing that policy does not offer);
- without a revision, or with a record that is not active, nothing is offered;
- a gateway whose revision is below the floor is refused. A higher or merely another one is not: a canary has it.

The caller's posture, grants and denies are the gateway's to decide: this node knows nobody's record but its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord, State
from foundation.reasons import Reason
from policies.segments import segments_of

_STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Opening:
    """A stream that a gateway announces: who calls (`source`, of `segments`), on which route, for which service, and by
    which policy revision the gateway decided."""

    source: SpiffeId
    segments: tuple[str, ...]
    route: str
    service: str
    revision: int


@dataclass(frozen=True, slots=True)
class Offered:
    """A service on one route. `kinds` of callers, from `segments`; both already narrowed to what the revision lets
    reach this node."""

    service: str
    kinds: frozenset[str]
    segments: frozenset[str]


@dataclass(frozen=True, slots=True)
class Offer:
    """Route to what is offered on it, to callers of `trust_domain`. `streams` are all stream routes of the revision;
    `floor` is the highest revision ever accepted here, 0 when there was none."""

    trust_domain: str
    routes: Mapping[str, Offered]
    streams: frozenset[str]
    floor: int

    @classmethod
    def of(cls, data: Mapping[str, Any], record: IdentityRecord, services: Collection[str], floor: int = 1) -> Offer:
        """What the node of `record` offers of its configured `services`, by `data` of a signed revision (Rego's `data`,
        as `policies.engine.CompiledPolicy` has it). `floor`: the highest revision ever accepted here."""
        workspace: Mapping[str, Any] = data.get("workspace", {})
        rows: Mapping[str, Mapping[str, Any]] = workspace.get("routes", {})
        streams = {name: row for name, row in rows.items() if row.get("type") == _STREAM}
        own = segments_of(data, record)
        offered = {
            name: Offered(row["service"], frozenset(row.get("kinds", ())), _callers(row, workspace, own))
            for name, row in streams.items()
            if row.get("service") in services and record.state is State.ACTIVE
        }
        return cls(record.id.trust_domain, MappingProxyType(offered), frozenset(streams), max(floor, 1))

    def refusal(self, opening: Opening) -> Reason | None:
        """Why the stream is refused, or None when this node takes it."""
        # 1. There is a signed revision here, and the gateway's is not older than any that was.
        if not self.floor:
            return Reason.REVISION_MISSING
        if opening.revision < self.floor:
            return Reason.REVISION_DOWNGRADE
        # 2. The route is one of streams, and leads to this service, which this node has.
        if opening.route not in self.streams:
            return Reason.ROUTE_UNKNOWN
        offered = self.routes.get(opening.route)
        if offered is None or offered.service != opening.service:
            return Reason.SERVICE_NOT_OFFERED
        # 3. The caller is of our authority, of a kind that the route names, from a segment that reaches this node's.
        if opening.source.trust_domain != self.trust_domain:
            return Reason.IDENTITY_UNKNOWN
        if opening.source.kind.value not in offered.kinds:
            return Reason.KIND_NOT_ALLOWED
        return None if offered.segments.intersection(opening.segments) else Reason.SEGMENT_FORBIDDEN


NOTHING = Offer("", MappingProxyType({}), frozenset(), 0)
"""What a node without a bundle offers."""


def _callers(row: Mapping[str, Any], workspace: Mapping[str, Any], own: frozenset[str]) -> frozenset[str]:
    """The segments that the route takes callers from and that reach one of `own` to which it leads."""
    segments: Mapping[str, Any] = workspace.get("segments", {})
    led_to = own.intersection(row.get("to", own))
    reaching = frozenset(name for name, reached in segments.items() if led_to.intersection(reached))
    return reaching.intersection(row.get("segments", reaching))

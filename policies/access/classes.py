"""Which classes of identity can reach a route: by kind, role, tier, segment, site, attestation.

Each combination of what the policy names is an identity of its own that the policy is asked about; those that are
answered alike are told together. It holds for an identity in good standing with that one role, no labels and a name
that the policy does not mention.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from policies.access.asking import Access, Policy, Probe, Subject, Tick, access, unnamed

DIMENSIONS = ("role", "tier", "segment", "site", "attestation")
PLACES = (
    ("identity", "kind"),
    ("identity", "roles"),
    ("identity", "tier"),
    ("identity", "segment"),
    ("identity", "site"),
    ("identity", "attestation"),
    ("identity", "verdict"),
    ("route",),
    ("request", "method"),
    ("request", "path"),
    ("request", "action"),
    ("request", "upgrade"),
    ("target",),
)
"""What of `input` the combinations and the requests go through: what else a policy reads may change an answer."""
ANY = "any"
OTHER = "any other"
_DOMAIN = "any.example"
_Row = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class AccessClass:
    """Identities that have the same access. Of each dimension the values that are meant, `any` when it is all."""

    kind: str
    role: tuple[str, ...]
    tier: tuple[str, ...]
    segment: tuple[str, ...]
    site: tuple[str, ...]
    attestation: tuple[str, ...]
    access: Access

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def classes(
    policy: Policy, route: str, probes: Sequence[Probe], now: int, most: int, tick: Tick
) -> tuple[AccessClass, ...] | None:
    """The classes that have access to `route`; None when that takes more than `most` questions."""
    domains = {kind: _domain(policy, route, kind) for kind in Kind}
    combinations = sum(_size(domain) for domain in domains.values())
    if combinations * len(probes) > most:
        return None
    found: list[AccessClass] = []
    for kind, domain in domains.items():
        answered: dict[_Row, Access] = {}
        for values in itertools.product(*domain):
            one = access(policy, _subject(policy, kind, values, domain), probes, now)
            if one is not None:
                answered[tuple((value,) for value in values)] = one
            if not tick(1):
                return None
        found += [_told(kind, row, domain, one) for row, one in merged(answered).items()]
    return tuple(found)


def merged(answered: Mapping[_Row, Access]) -> dict[_Row, Access]:
    """Rows that differ in one dimension alone, and are answered alike, made one; dimension after dimension."""
    rows = dict(answered)
    for dimension in reversed(range(len(DIMENSIONS))):
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for row, one in rows.items():
            key = (*row[:dimension], None, *row[dimension + 1 :], one)
            groups.setdefault(key, []).extend(row[dimension])
        rows = {(*key[:dimension], tuple(values), *key[dimension + 1 : -1]): key[-1] for key, values in groups.items()}
    return rows


def nodes(policy: Policy) -> tuple[Subject, ...]:
    """A node of each segment and class of attestation, for streams of a policy without an inventory."""
    segments: list[str] = sorted(policy.rows["segments"]) or [""]
    return tuple(
        Subject(_record(Kind.NODE, unnamed(()), segment=segment), Posture(attestation, Verdict.PASSED))
        for segment, attestation in itertools.product(segments, AttestationClass)
    )


def _domain(policy: Policy, route: str, kind: Kind) -> tuple[tuple[Any, ...], ...]:
    """The values that the policy can be expected to tell apart, dimension by dimension."""
    rows = policy.rows
    granted, denied = rows["grants"].get(route, {}), rows["denies"].get(route, ())
    named = [*(grant for grants in granted.values() for grant in grants), *denied]
    roles = {*granted, *(role for row in denied for role in row.get("roles", ()))}
    if route.startswith("api."):
        roles = set(rows["api"]["roles"])
    sites = sorted({site for row in named for site in row.get("sites", ())})
    is_node = kind is Kind.NODE
    return (
        (*sorted(roles), ""),
        (1, 2, 3) if is_node else (0,),
        (*sorted(rows["segments"]), "") if is_node else ("",),
        (*sites, OTHER),
        tuple(AttestationClass) if is_node else (AttestationClass.NONE,),
    )


def _size(domain: Sequence[Sequence[Any]]) -> int:
    size = 1
    for values in domain:
        size *= len(values)
    return size


def _subject(policy: Policy, kind: Kind, values: Sequence[Any], domain: Sequence[Sequence[Any]]) -> Subject:
    role, tier, segment, site, attestation = values
    names = (name for rows in policy.rows["denies"].values() for row in rows for name in row.get("names", ()))
    place = unnamed(domain[3]) if site == OTHER else site
    record = _record(kind, unnamed(names), (role,) if role else (), tier, segment, place)
    return Subject(record, Posture(attestation, Verdict.PASSED))


def _record(
    kind: Kind, name: str, roles: tuple[str, ...] = (), tier: int = 1, segment: str = "", site: str = ""
) -> IdentityRecord:
    return IdentityRecord(SpiffeId(_DOMAIN, kind, name), State.ACTIVE, 0, roles, tier, "", site, segment)


def _told(kind: Kind, row: _Row, domain: Sequence[Sequence[Any]], one: Access) -> AccessClass:
    told = {name: tuple(_spelled(*pair)) for name, *pair in zip(DIMENSIONS, row, domain, strict=True)}
    return AccessClass(kind=kind.value, access=one, **told)


def _spelled(values: Sequence[Any], domain: Sequence[Any]) -> Iterator[str]:
    if len(values) == len(domain):
        yield ANY
        return
    for value in values:
        yield str(value) if value not in ("", 0) else "none"

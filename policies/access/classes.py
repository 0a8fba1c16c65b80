"""Which classes of identity can reach a route: by kind, role, tier, segment, site, region, labels, attestation.

Each combination of what the policy names is an identity of its own that the policy is asked about; those that are
answered alike are told together. It holds for an identity in good standing with that one role, a name that the policy
does not mention, and labels that meet one selector or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from policies.access.asking import Access, Policy, Probe, Subject, Tick, access, unnamed

DIMENSIONS = ("role", "tier", "segment", "site", "region", "labels", "attestation")
PLACES = (
    ("identity", "kind"),
    ("identity", "roles"),
    ("identity", "tier"),
    ("identity", "segment"),
    ("identity", "site"),
    ("identity", "region"),
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
    region: tuple[str, ...]
    labels: tuple[str, ...]
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
    """A node of each segment, by its record and, where there is one, by its selector, and of each class of attestation,
    for streams of a policy without an inventory."""
    segments: list[str] = sorted(policy.rows["segments"]) or [""]
    records = [_record(Kind.NODE, unnamed(()), segment=segment) for segment in segments]
    records += [_selected(selector) for _, selector in sorted(_selectors(policy).items())]
    return tuple(
        Subject(record, Posture(attestation, Verdict.PASSED))
        for record, attestation in itertools.product(records, AttestationClass)
    )


def _selectors(policy: Policy) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = policy.rows.get("selectors", {}).get("of", {})
    return found


def _selected(selector: Mapping[str, Any]) -> IdentityRecord:
    """A node that meets it by the first of what each condition names, and is in no segment by its record."""
    first = {name: selector[name][0] for name in ("tiers", "regions", "sites") if name in selector}
    record = _record(Kind.NODE, unnamed(()), tier=first.get("tiers", 1), site=first.get("sites", ""))
    return replace(record, region=first.get("regions", ""), labels=dict(_labels(selector)))


def _labels(selector: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The fewest labels that meet it."""
    return tuple(sorted((key, values[0]) for key, values in selector.get("labels", {}).items()))


def _named_by(rows: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    return sorted({value for row in rows for value in row.get(field, ())})


def _domain(policy: Policy, route: str, kind: Kind) -> tuple[tuple[Any, ...], ...]:
    """The values that the policy can be expected to tell apart, dimension by dimension."""
    rows = policy.rows
    granted, denied = rows["grants"].get(route, {}), rows["denies"].get(route, ())
    named = [*(grant for grants in granted.values() for grant in grants), *denied]
    roles = {*granted, *(role for row in denied for role in row.get("roles", ()))}
    if route.startswith("api."):
        roles = set(rows["api"]["roles"])
    is_node = kind is Kind.NODE
    selectors = tuple(_selectors(policy).values()) if is_node else ()
    labels = {_labels(selector) for selector in selectors} - {()}
    return (
        (*sorted(roles), ""),
        (1, 2, 3) if is_node else (0,),
        (*sorted(rows["segments"]), "") if is_node else ("",),
        (*_named_by((*named, *selectors), "sites"), OTHER),
        (*_named_by(selectors, "regions"), OTHER),
        (*sorted(labels), ()),
        tuple(AttestationClass) if is_node else (AttestationClass.NONE,),
    )


def _size(domain: Sequence[Sequence[Any]]) -> int:
    size = 1
    for values in domain:
        size *= len(values)
    return size


def _subject(policy: Policy, kind: Kind, values: Sequence[Any], domain: Sequence[Sequence[Any]]) -> Subject:
    role, tier, segment, site, region, labels, attestation = values
    names = (name for rows in policy.rows["denies"].values() for row in rows for name in row.get("names", ()))
    site = unnamed(domain[3]) if site == OTHER else site
    region = unnamed(domain[4]) if region == OTHER else region
    record = _record(kind, unnamed(names), (role,) if role else (), tier, segment, site)
    return Subject(replace(record, region=region, labels=dict(labels)), Posture(attestation, Verdict.PASSED))


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
        if isinstance(value, tuple):
            yield " ".join(f"{key}={text}" for key, text in value) or "none"
        else:
            yield str(value) if value not in ("", 0) else "none"

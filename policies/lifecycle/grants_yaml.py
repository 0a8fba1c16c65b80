"""grants.yaml: roles, grants and denies, checked against the routes and segments, as rows indexed by route and role."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from foundation.fields import Fields
from foundation.identifiers import Kind, check_name
from policies.lifecycle.findings import Findings
from policies.lifecycle.paths import parse_paths, with_trailing_slash
from policies.lifecycle.routes_yaml import read_tiers
from policies.lifecycle.strict_yaml import Document
from policies.routes import RouteType

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "UPGRADE")
EVERY_ROUTE = "*"  # in a deny
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2})?(Z|[+-]\d{2}:\d{2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Known:
    """What grants may refer to. `requests` are the routes of which each request is decided. `roles` are those of our
    own API; grants.yaml adds its own."""

    routes: Mapping[str, RouteType]
    requests: frozenset[str]
    segments: frozenset[str]
    roles: frozenset[str]


@dataclass(slots=True)
class Grants:
    """Rows for Rego: route → role → grants, those that end last first; route → denies."""

    granted: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    denied: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_grants(document: Document, findings: Findings, known: Known) -> Grants:
    """The grants and denies of the file."""
    found, ids = Grants(), set[str]()
    with findings.collecting(document):
        fields = document.fields()
        names = [*fields.mapping("roles", {}, most=4096)]
        for name in names:
            with findings.collecting(document):
                check_name(name, field=f"roles.{name}")
        known = Known(known.routes, known.requests, known.segments, known.roles | frozenset(names))
        findings.each(document, fields, "grants", lambda item: _read_grant(item, findings, known, found, ids))
        findings.each(document, fields, "denies", lambda item: _read_deny(item, findings, known, found, ids))
        fields.finish()
    for rows in (rows for roles in found.granted.values() for rows in roles.values()):
        rows.sort(key=lambda row: (-row["expires"], row["id"]))
    return found


def _read_grant(item: Fields, findings: Findings, known: Known, found: Grants, ids: set[str]) -> None:
    row: dict[str, Any] = {"id": findings.name(item, "id", taken=ids)}
    ids.add(row["id"])
    item.text("about", "")
    role = _one_known(item, "role", known.roles)
    route = _one_known(item, "route", known.routes)
    if route in known.requests:
        row |= parse_paths(item, "paths") | {"methods": _methods(item)}
    elif item.has("paths") or item.has("methods"):
        raise item.fault("paths", "a stream of tcp or udp has no paths and no methods")
    row |= _places(item)
    row["expires"] = _expires(item)
    row["obligations"] = list(item.each("obligations", _obligation, most=16, optional=True))
    found.granted.setdefault(route, {}).setdefault(role, []).append(row)


def _read_deny(item: Fields, findings: Findings, known: Known, found: Grants, ids: set[str]) -> None:
    row: dict[str, Any] = {"id": findings.name(item, "id", taken=ids), "why": item.text("why", max_length=256)}
    ids.add(row["id"])
    route = item.text("route")
    routes = list(known.routes) if route == EVERY_ROUTE else [_one_known(item, "route", known.routes)]
    if item.has("paths"):
        row |= with_trailing_slash(parse_paths(item, "paths"))
    if item.has("methods"):
        row["methods"] = _methods(item)
    row |= _places(item)
    row |= _limits(item, "kinds", tuple(Kind)) | _limits(item, "roles", known.roles)
    row |= _limits(item, "segments", known.segments) | _limits(item, "names", None)
    for name in routes:
        found.denied.setdefault(name, []).append(row)


def _places(item: Fields) -> dict[str, Any]:
    """Sites and tiers, where they are named."""
    tiers = {"tiers": read_tiers(item)} if item.has("tiers") else {}
    return tiers | _limits(item, "sites", None)


def _limits(
    item: Fields, name: str, allowed: Mapping[str, Any] | frozenset[str] | tuple[str, ...] | None
) -> dict[str, Any]:
    """The list of names `name`, where the item has one; each must be in `allowed`, unless that is None."""
    if not item.has(name):
        return {}
    values = item.texts(name)
    if not values:
        raise item.fault(name, "an empty list; leave the field out to name no limit")
    for value in values:
        if allowed is not None and value not in allowed:
            raise item.fault(name, f"unknown: {value[:64]!r}")
        check_name(value, field=f"{item.path}.{name}")
    return {name: sorted({str(value) for value in values})}


def _one_known(item: Fields, name: str, known: Mapping[str, Any] | frozenset[str]) -> str:
    value = item.text(name)
    if value not in known:
        raise item.fault(name, f"there is no {name} {value[:64]!r}")
    return value


def _methods(item: Fields) -> list[str]:
    methods = set(item.texts("methods"))
    if not methods or not methods <= set(METHODS):
        raise item.fault("methods", f"expected some of {', '.join(METHODS)}")
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _obligation(item: Fields) -> dict[str, Any]:
    kind = item.one_of("kind", ("rate",))
    rate = item.integer("per_second", least=1, most=1_000_000)
    burst = item.integer("burst", rate, least=1, most=1_000_000)
    item.finish()
    return {"kind": kind, "per_second": rate, "burst": burst}


def _expires(item: Fields) -> int:
    """Seconds since the Unix epoch. A date alone means its beginning in UTC; a time needs its offset (ISO 8601)."""
    end = _instant(item.text("expires", max_length=40))
    if end is None or end.timestamp() <= 0:
        detail = "expected a date such as 2027-01-31 or a time with its offset such as 2027-01-31T18:00:00Z"
        raise item.fault("expires", detail)
    return int(end.timestamp())


def _instant(text: str) -> datetime | None:
    try:
        if _DATE.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
        if _DATE_TIME.fullmatch(text):
            return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return None

"""Workspaces and queries of any size, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from policies.model import CanonicalRequest, Query, Staleness

SEGMENTS = b"segments:\n  - name: edge\n    reaches: [edge]\n  - name: lab\n"


def fleet_workspace(
    routes: int = 200, grants: int = 500, roles: int = 8, upstream: str = "http://127.0.0.1:80"
) -> dict[str, bytes]:
    """A workspace of this size. Grant `g<i>` is on route `r<i mod routes>`; a route's grants go to one role after the
    other."""
    route_lines = [f"  - {{name: r{i}, prefix: /r{i}, upstreams: [{upstream}], kinds: [node]}}" for i in range(routes)]
    grant_lines = [
        f"  - {{id: g{i}, role: role-{(i + i // routes) % roles}, route: r{i % routes}, methods: [GET, POST], "
        f"paths: [/r{i % routes}/status, /r{i % routes}/items/*, /r{i % routes}/files/**], expires: 2030-01-01}}"
        for i in range(grants)
    ]
    role_lines = [f"  role-{i}: Role {i}" for i in range(roles)]
    return {
        "routes.yaml": "\n".join(["routes:", *route_lines]).encode(),
        "grants.yaml": "\n".join(["roles:", *role_lines, "grants:", *grant_lines]).encode(),
        "segments.yaml": SEGMENTS,
    }


def query(
    route: str = "control-plane",
    method: str = "GET",
    path: tuple[str, ...] = ("version",),
    roles: tuple[str, ...] = ("edge-agent",),
    *,
    kind: Kind = Kind.NODE,
    name: str = "n1",
    attestation: AttestationClass = AttestationClass.VIRTUAL,
    verdict: Verdict = Verdict.PASSED,
    tier: int = 1,
    segment: str = "edge",
    site: str = "site-a",
    upgrade: str = "",
    staleness: Staleness = Staleness.FRESH,
    now: int = 1_800_000_000,
    labels: Mapping[str, str] | None = None,
    target: IdentityRecord | None = None,
    target_posture: Posture | None = None,
) -> Query:
    """A node's request that the starter workspace allows, with any part of it changed."""
    is_node = kind is Kind.NODE
    identity = IdentityRecord(
        SpiffeId("fleet.test", kind, name),
        State.ACTIVE,
        1,
        roles,
        tier if is_node else 0,
        "eu",
        site,
        segment if is_node else "",
        labels or {},
    )
    action = {"GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, "create")
    target_bytes = b"/" + b"/".join(part.encode() for part in path)
    request = CanonicalRequest(method, "create" if upgrade else action, "gateway.test", path, (), upgrade, target_bytes)
    return Query(now, identity, Posture(attestation, verdict), route, request, staleness, target, target_posture)


def node(name: str, segment: str = "edge", **changes: Any) -> IdentityRecord:
    """A node's record."""
    return IdentityRecord(SpiffeId("fleet.test", Kind.NODE, name), State.ACTIVE, 1, segment=segment, **changes)

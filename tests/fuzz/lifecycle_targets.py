"""Fuzz targets of policy's life: the workspace's files and the archive. What is accepted must also hold together."""

from __future__ import annotations

import gzip
from functools import partial

from agent.firewall.wall import Wall, networks_of
from foundation.faults import Fault
from policies.archive import pack, unpack
from policies.lifecycle.revision import verify
from policies.lifecycle.strict_yaml import parse_yaml
from policies.lifecycle.workspace import default_policy, load_workspace
from tests.support.policy import MINIMAL, STARTER
from tests.support.signing import new_signing_key

_DEFAULT = default_policy()
_KEY = new_signing_key().public_key()


def _yaml(raw: bytes) -> None:
    document = parse_yaml(raw, "f")
    assert all(0 < line <= raw.count(b"\n") + raw.count(b"\r") + 2 for line in document.lines.values())


def _workspace(name: str, raw: bytes) -> None:
    found = load_workspace({**MINIMAL, name: raw}, _DEFAULT)
    rows = found.data["workspace"]
    assert Wall(networks_of(found.data)).nodes == networks_of(found.data)
    assert rows.get("selectors", {}).get("of", {}).keys() <= rows["segments"].keys()
    assert {route.name for route in found.routes} == rows["routes"].keys() >= rows["grants"].keys()
    assert all(row["expires"] > 0 for roles in rows["grants"].values() for grants in roles.values() for row in grants)


def _archive(raw: bytes) -> None:
    members = unpack(gzip.compress(raw))
    assert gzip.decompress(pack(members)) == raw


def _unsigned(raw: bytes) -> None:
    verify(raw, _KEY, 0)
    raise AssertionError("nobody signed this")


TARGETS = {
    "yaml": _yaml,
    **{name: partial(_workspace, f"{name}.yaml") for name in ("routes", "grants", "segments", "api")},
    "archive": _archive,
    "unsigned": _unsigned,
}
SEEDS = {
    "yaml": [b"a:\n  - b: 'c'\n    d: |\n      e\n", (STARTER / "grants.yaml").read_bytes()],
    "routes": [MINIMAL["routes.yaml"], MINIMAL["routes.yaml"].replace(b"kinds", b"prefix: /a, class: critical, kinds")],
    "grants": [MINIMAL["grants.yaml"]],
    "segments": [
        MINIMAL["segments.yaml"],
        b"segments:\n  - {name: edge, select: {labels: {a: [b]}, tiers: [1], regions: [r], sites: [s]},"
        b" reaches: [edge], networks: [10.0.0.0/16, 'fd00::/48']}\n",
    ],
    "api": [_DEFAULT["api.yaml"]],
    "archive": [gzip.decompress(pack({"manifest.json": b"{}", "rego/a.rego": b"package a"}))],
    "unsigned": [pack({"manifest.json": b"{}", "manifest.sig": b"s"})],
}


def survives(name: str, raw: bytes) -> bool:
    """Whether the target accepts `raw`."""
    try:
        TARGETS[name](raw)
    except Fault:
        return False
    return True

"""The default policy over a workspace, compiled and embedded, for tests that ask it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from foundation.identity import AttestationClass
from policies.compile import compile_policy
from policies.lifecycle.workspace import Workspace, default_policy, load_workspace, read_workspace
from policies.settings import CompileSettings, PolicySettings
from policies.wasm import WasmEngine

STARTER = Path(__file__).parents[2] / "policies" / "starter"
MINIMAL: Mapping[str, bytes] = {
    "routes.yaml": b"routes:\n  - {name: r, upstreams: ['http://127.0.0.1:80'], kinds: [node, operator]}\n",
    "grants.yaml": b"roles: {agent: An agent}\n"
    b"grants:\n  - {id: g, role: agent, route: r, methods: [GET], paths: [/**], expires: 2030-01-01}\n",
    "segments.yaml": b"segments:\n  - {name: edge}\n",
}


def workspace(least: AttestationClass = AttestationClass.NONE, **files: str) -> Workspace:
    """`MINIMAL` with some of its YAML files replaced: `routes`, `grants`, `segments`, `api`."""
    changed = {f"{name}.yaml": text.encode() for name, text in files.items()}
    return load_workspace({**MINIMAL, **changed}, default_policy(), least)


@cache
def starter() -> Workspace:
    """The workspace that `sallyport init` copies."""
    return read_workspace(STARTER)


def engine_of(found: Workspace) -> WasmEngine:
    """The embedded engine with this workspace's policy. The caller closes it."""
    settings = PolicySettings(decision_timeout=5.0)  # a loaded machine is no denial
    return WasmEngine(compile_policy(found.rego, found.data, CompileSettings()), settings)

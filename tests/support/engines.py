"""Small policies and what runs them, for tests of the engines themselves."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.settings import CompileSettings, PolicySettings
from policies.wasm import WasmEngine, _to_json

EXPLAIN = "\nexplain := {}\n"
PATIENT = PolicySettings(decision_timeout=5.0)  # a loaded machine is no denial
HASTY = PolicySettings(decision_timeout=0.05, memory=16 << 20)

GRANTS = {
    "workspace": {
        "grants": {
            "r": {"agent": [{"id": "g1", "paths": [["a"], ["b", "c"]], "ends": 2_000_000_000.5}]},
            "short": {"agent": [{"id": "g2", "paths": [["a"]], "ends": 1_800_000_060}]},
        }
    }
}
# A permit by a grant found by route and role, helper functions in a second package, a set, and an explanation.
SMALL: Mapping[str, bytes] = {
    "main.rego": b"""package sallyport

import data.sallyport.paths

default decision := {"allow": false, "reasons": ["no_grant"]}

decision := {"allow": false, "reasons": ["posture_failed"]} if {
	input.identity.verdict != "passed"
} else := {
	"allow": true,
	"reasons": ["granted"],
	"grant": grant.id,
	"deadline": grant.ends,
	"obligations": [{"kind": "rate", "per_second": 5, "burst": 10}],
} if {
	some role in input.identity.roles
	some grant in data.workspace.grants[input.route][role]
	paths.covered(grant)
	not input.identity.labels.barred
}

explain := {"roles": sort(input.identity.roles), "text": sprintf("%s at %d", [input.route, input.now])}
""",
    "paths.rego": b"""package sallyport.paths

covered(grant) if input.request.path in {path | some path in grant.paths}
""",
}


def one(decision: str) -> dict[str, bytes]:
    """A policy of one file whose rules are `decision`."""
    return {"one.rego": f"package sallyport\n{decision}{EXPLAIN}".encode()}


@functools.cache
def small() -> CompiledPolicy:
    return compile_policy(SMALL, GRANTS, CompileSettings())


def compiled(decision: str, data: Mapping[str, Any] | None = None) -> CompiledPolicy:
    """`one(decision)` over `data`, compiled."""
    return compile_policy(one(decision), data or {}, CompileSettings())


@contextmanager
def wasm(policy: CompiledPolicy, settings: PolicySettings = PATIENT) -> Iterator[WasmEngine]:
    engine = WasmEngine(policy, settings)
    try:
        yield engine
    finally:
        engine.stop()


def put_data(engine: WasmEngine, data: Mapping[str, Any]) -> None:
    """The same code over other data from now on, without compiling it again."""
    engine._loaded.data = _to_json(data).encode()
    engine._discard()


def answer(engine: WasmEngine, document: Any) -> Any:
    """The decision document for any `input`, as it comes from the engine."""
    spelled = json.dumps(document, sort_keys=True, ensure_ascii=False)
    return engine.evaluate("sallyport/decision", spelled.encode())

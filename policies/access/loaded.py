"""A compiled policy, loaded to be asked about access: an engine of its own, so that nothing of what decides waits for
it or forgets answers because of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from policies.access.asking import Policy
from policies.engine import CompiledPolicy
from policies.lifecycle.workspace import OWN_SOURCES
from policies.settings import PolicySettings
from policies.wasm import WasmEngine

_PATIENCE = 5.0  # seconds for one answer: nobody's request waits for it


@contextmanager
def loaded(compiled: CompiledPolicy, revision: int, settings: PolicySettings) -> Iterator[Policy]:
    """Takes a good part of a second of processor time. Raises `Fault(ENGINE_FAILED)`."""
    engine = WasmEngine(compiled, replace(settings, decision_timeout=max(settings.decision_timeout, _PATIENCE)))
    try:
        is_default = not any(path.startswith(OWN_SOURCES) for path in compiled.rego)
        yield Policy(engine.decide_now, engine.explain_now, compiled.data, compiled.reads, revision, is_default)
    finally:
        engine.stop()

"""From a compiled policy to the engine that the settings name."""

from __future__ import annotations

import asyncio

from policies.engine import CompiledPolicy, PolicyEngine
from policies.settings import PolicySettings
from policies.wasm import WasmEngine


async def load_engine(compiled: CompiledPolicy, settings: PolicySettings) -> PolicyEngine:
    """An engine with this policy loaded. Raises `Fault(ENGINE_FAILED)` when it cannot be loaded."""
    return await asyncio.to_thread(WasmEngine, compiled, settings)

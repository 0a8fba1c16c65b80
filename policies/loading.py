"""From a compiled policy to the engine that the settings name."""

from __future__ import annotations

import asyncio

from foundation.clock import Clock, SystemClock
from foundation.decisionlog.masking import Mask
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.engine import CompiledPolicy, PolicyEngine
from policies.paced import PacedEngine
from policies.settings import PolicySettings
from policies.wasm import WasmEngine


async def load_engine(
    compiled: CompiledPolicy, settings: PolicySettings, clock: Clock | None = None, mask: Mask | None = None
) -> CachedEngine:
    """An engine with this policy loaded, and its cache. `mask` is for what the record keeps of questions. Raises
    `Fault(ENGINE_FAILED)` when it cannot be loaded and `Fault(ENGINE_UNREACHABLE)` when the server of engine `opa`
    cannot be reached."""
    engine: PolicyEngine
    if settings.engine == "opa":
        from policies.opa_server import OpaServerEngine  # noqa: PLC0415  # its HTTP client costs 10 MB and 0.1 s

        engine = await OpaServerEngine.load(compiled, settings, clock or SystemClock())
    else:
        engine = PacedEngine(await asyncio.to_thread(WasmEngine, compiled, settings), settings)
    return CachedEngine(engine, compiled, DecisionCache(settings.cache), mask)

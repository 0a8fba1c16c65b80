"""The port of a policy engine. `wasm` and `opa_server` implement it; tests/conformance holds them equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from policies.model import Answer, Query
from policies.projection import ALL_DATA, DataReads

DECISION_ENTRYPOINT = "sallyport/decision"
EXPLAIN_ENTRYPOINT = "sallyport/explain"


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """Policy as published: what an engine loads. `digest` is over code and data; `reads` is the projection (see
    `policies.projection`) of `input` that the decision entrypoint can read, `data_reads` that of `data`."""

    digest: str
    wasm: bytes
    rego: Mapping[str, bytes]
    data: Mapping[str, Any]
    reads: tuple[tuple[str, ...], ...]
    data_reads: DataReads = ALL_DATA


class PolicyEngine(Protocol):
    """One loaded policy. An error or a time-out is an answer that denies, never an exception."""

    async def decide(self, query: Query) -> Answer:
        """The answer of the decision entrypoint."""
        ...

    def decide_now(self, query: Query) -> Answer | None:
        """As `decide`, by an engine that never waits, or from what was answered before; None when `decide` must be
        awaited."""
        ...

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """The document of the explain entrypoint: near misses and what each lacks. `asked` is an `input`, or what the
        record kept of one. Uncached. Raises `Fault`."""
        ...

    async def close(self) -> None:
        """Release what the engine holds."""
        ...

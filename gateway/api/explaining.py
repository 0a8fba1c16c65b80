"""From a decision's ID to its explanation: the record, the revision that decided, and the end of its stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from foundation.faults import Fault
from gateway.snapshot import SnapshotStore
from policies.engine import PolicyEngine
from policies.explain import Evidence, Explanation, explanation
from policies.frozen import is_masked

OMITTED = "omitted"  # a record says so of a question that it could not keep
_MASKED = "policy reads what the record keeps as a hash alone: what it says now may differ"


class Records(Protocol):
    """The decision log, as far as explanations read it."""

    async def find(self, decision_id: str) -> Mapping[str, Any]: ...

    async def find_cut(self, permit_id: str) -> Mapping[str, Any] | None: ...


class Explainer:
    """Call it with a decision's ID. `kept` gives the engine of an earlier revision while that is kept."""

    def __init__(
        self, store: SnapshotStore, records: Records, kept: Callable[[int], Awaitable[PolicyEngine | None]]
    ) -> None:
        self._store = store
        self._records = records
        self._kept = kept

    async def __call__(self, decision_id: str) -> Explanation:
        """Raises `Fault(NOT_FOUND | FILE_UNREADABLE | ENGINE_ANSWER_INVALID)`."""
        record = await self._records.find(decision_id)
        cut = await self._records.find_cut(decision_id) if record["allow"] else None
        return explanation(record, await self._asked_again(record, cut))

    async def _asked_again(self, record: Mapping[str, Any], cut: Mapping[str, Any] | None) -> Evidence:
        """What policy says of the question now, by the revision that decided where that is kept."""
        asked, (engine, revision) = record.get("input"), await self._engine(record["numbers"][0])
        if engine is None or not isinstance(asked, dict):
            return Evidence(cut=cut)
        if OMITTED in asked:
            return Evidence(None, revision, f"policy cannot say more: the question was {asked[OMITTED]}", cut)
        try:
            # `now` is kept where the decision read it; for what only the explanation reads, the record's time will do.
            document = await engine.explain({"now": int(record["at"]), **asked})
        except Fault as fault:
            return Evidence(None, revision, f"policy cannot say more: {fault.reason.meaning}", cut)
        return Evidence(document, revision, _MASKED if is_masked(asked) else "", cut)

    async def _engine(self, decided: int) -> tuple[PolicyEngine | None, int]:
        policy = self._store.current.policy
        if policy is None or policy.revision != decided:
            engine = await self._kept(decided)
            if engine is not None:
                return engine, decided
        return (policy.engine, policy.revision) if policy is not None else (None, 0)

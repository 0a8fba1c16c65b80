"""From a decision's ID to its explanation: the record, the revision that decided, the end of its stream, and what nodes
say of it.

What this gateway decided its own log says, whatever nodes say of the same ID. What it did not decide a node may have:
beside the authority, nodes' records are looked up too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from foundation.faults import Fault
from foundation.ports import NodeWord, NodeWords
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from policies.engine import PolicyEngine
from policies.explain import Evidence, Explanation, explanation
from policies.frozen import is_masked
from policies.node_words import refusals, told

OMITTED = "omitted"  # a record says so of a question that it could not keep
_MASKED = "policy reads what the record keeps as a hash alone: what it says now may differ"


class Records(Protocol):
    """The decision log, as far as explanations read it."""

    async def find(self, decision_id: str) -> Mapping[str, Any]: ...

    async def find_cut(self, permit_id: str) -> Mapping[str, Any] | None: ...


class Explainer:
    """Call it with a decision's ID. `kept` gives the engine of an earlier revision while that is kept; `words` are
    nodes', None away from the authority."""

    def __init__(
        self,
        store: SnapshotStore,
        records: Records,
        kept: Callable[[int], Awaitable[PolicyEngine | None]],
        words: NodeWords | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._kept = kept
        self._words = words

    async def __call__(self, decision_id: str) -> Explanation:
        """Raises `Fault(NOT_FOUND | FILE_UNREADABLE | STORAGE_FAILED | ENGINE_ANSWER_INVALID)`."""
        try:
            record = await self._records.find(decision_id)
        except Fault as fault:
            if fault.reason is not Reason.NOT_FOUND:
                raise
            return await self._told(decision_id, fault)
        if not record["allow"]:
            return explanation(record, await self._asked_again(record, None))
        cut, words = await self._records.find_cut(decision_id), await self._of_nodes(decision_id)
        return explanation(record, replace(await self._asked_again(record, cut), said=refusals(words)))

    async def _told(self, decision_id: str, missing: Fault) -> Explanation:
        """Of a decision that is `missing` in the log: by the node that made it."""
        words = await self._of_nodes(decision_id)
        if not words:
            raise missing
        by = told(decision_id, words)
        evidence = await self._asked_again(by.record, None)
        return explanation(by.record, replace(evidence, said=by.sentences, node=by.node, staleness=by.staleness))

    async def _of_nodes(self, decision_id: str) -> tuple[NodeWord, ...]:
        return () if self._words is None else await self._words.of_decision(decision_id)

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

"""What a gateway tells operators: decisions and why they fell so, open exchanges, what it knows and how old that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from foundation.api import Answer, ApiRoute, Call
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.live import Live
from gateway.scrape import Told
from gateway.snapshot import SnapshotStore
from policies.explain import Explanation

MAX_LISTED = 1000
# A question to every worker, by name; their answers.
AskWorkers = Callable[[str], Awaitable[Sequence[Told]]]


class Records(Protocol):
    """The decision log, as far as it is read here."""

    async def recent(self, limit: int) -> list[Mapping[str, Any]]: ...


class OperatorsApi:
    """Handlers over this gateway's own state."""

    def __init__(
        self,
        store: SnapshotStore,
        ask: AskWorkers,
        records: Records,
        explain: Callable[[str], Awaitable[Explanation]],
        clock: Clock,
        ready: Callable[[], str],
        live: Callable[[], Awaitable[Live]],
    ) -> None:
        self._store = store
        self._ask = ask
        self._records = records
        self._explain = explain
        self._clock = clock
        self._ready = ready
        self._live = live

    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute(
                "decisions.list", "GET", "/v1/decisions", self.list, "Decisions, the newest first", query=("limit",)
            ),
            ApiRoute("decisions.explain", "GET", "/v1/decisions/{id}", self.explain, "Why a decision fell as it did"),
            ApiRoute("gateway.show", "GET", "/v1/gateway", self.show, "What this gateway knows, and how old it is"),
            ApiRoute("gateway.show", "GET", "/v1/gateway/live", self.watch, "What this gateway does right now"),
        ]

    async def list(self, call: Call) -> Answer:
        text = call.query.get("limit", "100")
        if not (text.isdecimal() and len(text) <= 4 and 0 < int(text) <= MAX_LISTED):
            raise Fault(Reason.MESSAGE_MALFORMED, f"expected 1 to {MAX_LISTED}", field="limit")
        return Answer.of({"items": [dict(record) for record in await self._records.recent(int(text))]})

    async def explain(self, call: Call) -> Answer:
        return Answer.of((await self._explain(call.parameters["id"])).to_json())

    async def watch(self, call: Call) -> Answer:
        return Answer.of((await self._live()).to_json())

    async def show(self, call: Call) -> Answer:
        snapshot = self._store.current
        counts = [each.answer.split() for each in await self._ask("open")]
        return Answer.of(
            {
                "workers": len(counts),
                "numbers": snapshot.numbers._asdict(),
                "policy_digest": snapshot.policy.digest if snapshot.policy else "",
                "identities": len(snapshot.inventory),
                "heartbeat_age_seconds": max(0.0, self._clock.now() - self._store.heartbeat_at),
                "exchanges_open": sum(int(now) for now, _cut in counts),
                "exchanges_cut": sum(int(cut) for _now, cut in counts),
                "waiting_for": self._ready(),
            }
        )

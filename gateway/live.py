"""What a gateway does right now, in one small document: read from its metrics and snapshot, for `sallyport top`.

Counts only grow. Who wants rates takes two and compares them (`since`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric

from foundation.clock import Clock
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.answers import SECONDS
from gateway.merging import Collector
from gateway.scrape import Told
from gateway.snapshot import SnapshotStore
from policies.staleness import StalenessSettings, staleness

_PERMITTING = frozenset({Reason.GRANTED.code, Reason.BREAK_GLASS.code})
_MAX = 1 << 53
BEYOND = float("inf")


@dataclass(slots=True)
class RouteCounts:
    """One route's exchanges that ended, those that were refused or cut, those answered with 5xx; how many lasted at
    most each of `gateway.answers.SECONDS` (cumulative, the last is all); streams open now."""

    ended: int = 0
    refused: int = 0
    failed: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    streams: int = 0

    def since(self, before: RouteCounts | None) -> RouteCounts:
        """What came since `before`; streams are as they are now."""
        old = before or RouteCounts()
        grown = [new - known for new, known in zip(self.buckets, old.buckets, strict=True)]
        return RouteCounts(
            max(0, self.ended - old.ended),
            max(0, self.refused - old.refused),
            max(0, self.failed - old.failed),
            [max(0, each) for each in grown],
            self.streams,
        )

    def quantile(self, share: float) -> float | None:
        """The bound in seconds that `share` of the exchanges kept; None without any, infinite beyond the last bound."""
        wanted = share * self.buckets[-1]
        if not wanted:
            return None
        return next((bound for bound, count in zip(SECONDS, self.buckets, strict=False) if count >= wanted), BEYOND)


@dataclass(slots=True)
class Live:
    """The state at `at` (seconds since the epoch). `staleness` is the class of the facts, `heartbeat_age` their age
    in seconds; `waiting_for` is what is missing before it can decide; `notes` what somebody should look at."""

    at: float = 0.0
    revision: int = 0
    digest: str = ""
    revocations: int = 0
    identities: int = 0
    heartbeat_age: float = 0.0
    staleness: str = ""
    waiting_for: str = ""
    workers: int = 0
    connections: int = 0
    open: int = 0
    late_cuts: int = 0
    cuts: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    routes: dict[str, RouteCounts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__slots__}
        for name in ("cuts", "refusals"):
            document[name] = [{"reason": reason, "count": count} for reason, count in getattr(self, name).items()]
        document["routes"] = [
            {"route": name} | {part: getattr(counts, part) for part in counts.__slots__}
            for name, counts in self.routes.items()
        ]
        return document

    @classmethod
    def parse(cls, fields: Fields) -> Live:
        """What `to_json` wrote. Raises `Fault`."""
        live = cls(
            at=fields.number("at"),
            revision=fields.integer("revision"),
            digest=fields.text("digest"),
            revocations=fields.integer("revocations"),
            identities=fields.integer("identities"),
            heartbeat_age=fields.number("heartbeat_age"),
            staleness=fields.text("staleness"),
            waiting_for=fields.text("waiting_for"),
            workers=fields.integer("workers"),
            connections=fields.integer("connections"),
            open=fields.integer("open"),
            late_cuts=fields.integer("late_cuts"),
            cuts=dict(fields.each("cuts", _count)),
            refusals=dict(fields.each("refusals", _count)),
            routes=dict(fields.each("routes", _route)),
            notes=list(fields.texts("notes")),
        )
        fields.finish()
        return live


class Watch:
    """Tells the state now. `gather` gives the whole gateway's metrics; `ask` asks its workers; `ready` tells what is
    missing before it can decide."""

    def __init__(
        self,
        store: SnapshotStore,
        clock: Clock,
        settings: StalenessSettings,
        gather: Callable[[], Awaitable[Collector]],
        ask: Callable[[str], Awaitable[Sequence[Told]]],
        ready: Callable[[], str],
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self.gather = gather
        self._ask = ask
        self._ready = ready

    async def notes(self) -> Mapping[str, str]:
        """What somebody should look at, by the worker that says so."""
        return {f"worker-{each.number}": each.answer.decode() for each in await self._ask("note") if each.answer}

    async def now(self) -> Live:
        snapshot, now, heartbeat = self._store.current, self._clock.now(), self._store.heartbeat_at
        live = counted((await self.gather()).collect())
        live.at, live.waiting_for = now, self._ready()
        live.revision, live.revocations = snapshot.numbers.policy, snapshot.numbers.revocations
        live.digest = snapshot.policy.digest if snapshot.policy else ""
        live.identities = len(snapshot.inventory)
        live.heartbeat_age = max(0.0, now - heartbeat)
        live.staleness = staleness(heartbeat, now, self._settings)[0].value
        live.notes = [f"{who}: {text}" for who, text in sorted((await self.notes()).items())]
        return live


def counted(metrics: Iterable[Metric]) -> Live:
    """What metrics say of the state; what they do not say is left empty."""
    live = Live()
    for metric in metrics:
        read = _READERS.get(metric.name)
        if read is not None:
            for sample in metric.samples:
                read(live, sample.name, sample.labels, int(sample.value))
    return live


def _of(live: Live, route: str) -> RouteCounts:
    return live.routes.setdefault(route, RouteCounts())


def _ended(live: Live, name: str, labels: Mapping[str, str], value: int) -> None:
    if not name.endswith("_total"):
        return
    counts, reason = _of(live, labels["route"]), labels["reason"]
    counts.ended += value
    counts.failed += value if labels["status"].startswith("5") else 0
    if reason not in _PERMITTING:
        counts.refused += value
        live.refusals[reason] = live.refusals.get(reason, 0) + value


def _lasted(live: Live, name: str, labels: Mapping[str, str], value: int) -> None:
    if name.endswith("_bucket"):
        bound = float(labels["le"])
        place = SECONDS.index(bound) if bound in SECONDS else len(SECONDS)
        _of(live, labels["route"]).buckets[place] = value


def _streams(live: Live, name: str, labels: Mapping[str, str], value: int) -> None:
    _of(live, labels["route"]).streams = value


def _cut(live: Live, name: str, labels: Mapping[str, str], value: int) -> None:
    if name.endswith("_count"):
        live.cuts[labels["reason"]] = value


def _late(live: Live, name: str, labels: Mapping[str, str], value: int) -> None:
    live.late_cuts += value if name.endswith("_total") else 0


def _set(attribute: str) -> Callable[[Live, str, Mapping[str, str], int], None]:
    return lambda live, name, labels, value: setattr(live, attribute, value)


_READERS: Mapping[str, Callable[[Live, str, Mapping[str, str], int], None]] = {
    "sallyport_exchanges": _ended,
    "sallyport_exchange_seconds": _lasted,
    "sallyport_streams_open": _streams,
    "sallyport_time_to_cut_seconds": _cut,
    "sallyport_cuts_late": _late,
    "sallyport_connections": _set("connections"),
    "sallyport_exchanges_open": _set("open"),
    "sallyport_workers_ready": _set("workers"),
}


def _count(fields: Fields) -> tuple[str, int]:
    found = fields.text("reason"), fields.integer("count")
    fields.finish()
    return found


def _route(fields: Fields) -> tuple[str, RouteCounts]:
    counts = RouteCounts(
        fields.integer("ended"),
        fields.integer("refused"),
        fields.integer("failed"),
        list(fields.integers("buckets", least=0, most=_MAX, count=len(SECONDS) + 1)),
        fields.integer("streams"),
    )
    found = fields.text("route"), counts
    fields.finish()
    return found

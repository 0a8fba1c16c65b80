"""Rate, errors and durations of exchanges: counted in plain numbers as they end, made into metrics when scraped.

Laws held here:
- labels are bounded: routes by `MAX_ROUTES` (the rest is `other`), reasons by their vocabulary, statuses by those that
  HTTP names (the rest is `2xx` … `5xx`); nothing that a client chooses is a label;
- counting costs one look-up and no allocation, but for the first exchange of its kind.

An exemplar is the trace of one exchange in a bucket, there when that trace is recorded: OpenMetrics alone shows it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from http import HTTPStatus
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from foundation.reasons import Reason

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
BOUNDS = (*map(str, SECONDS), "+Inf")
MAX_ROUTES = 256
MAX_KINDS = 16_384
OTHER = "other"
_STATUSES = {int(status): str(int(status)) for status in HTTPStatus} | {0: "none"}


_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class Kind(NamedTuple):
    """The labels of exchanges that are counted together. `status` is `none` when no answer went out."""

    route: str
    reason: str
    status: str


class _Count:
    """The exchanges of one kind: how many in each bucket, and seconds altogether."""

    __slots__ = ("buckets", "exemplars", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(BOUNDS)
        self.seconds = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Answers(Collector):
    """Counts exchanges that ended. One event loop owns it; scraping reads it there too."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kinds: dict[Kind, _Count] = {}
        self._routes: set[str] = set()
        self._known: dict[tuple[str, str, int], _Count] = {}
        registry.register(self)

    def answered(self, route: str, reason: Reason, status: int, seconds: float, trace: str, now: float) -> None:
        """An exchange ended at `now` (seconds since the Unix epoch). `route` is empty when none was matched; `status` 0
        when no answer went out; `trace` is the ID of a recorded trace, or empty."""
        count = self._known.get((route, reason._name_, status))
        if count is None:
            count = self._first(route, reason, status)
        bucket = bisect_left(SECONDS, seconds)
        count.buckets[bucket] += 1
        count.seconds += seconds
        if trace:
            count.exemplars[bucket] = Exemplar({"trace_id": trace}, seconds, now)

    def collect(self) -> Iterator[Metric]:
        kinds = sorted(self._kinds.items())
        ended = CounterMetricFamily("sallyport_exchanges", "Exchanges that ended", labels=Kind._fields)
        for kind, count in kinds:
            ended.add_metric(kind, sum(count.buckets))
        yield ended
        lasted = HistogramMetricFamily("sallyport_exchange_seconds", "From request to last byte", labels=("route",))
        for route in sorted(self._routes):
            counts = [count for kind, count in kinds if kind.route == route]
            lasted.add_metric((route,), _buckets(counts), sum(count.seconds for count in counts))
        yield lasted

    def _first(self, route: str, reason: Reason, status: int) -> _Count:
        if len(self._known) >= 4 * MAX_KINDS:  # routes come and go with revisions; what was counted stays
            self._known.clear()
        kind = Kind(self._route(route), reason.code, _STATUSES.get(status) or f"{status // 100}xx")
        if len(self._kinds) >= MAX_KINDS and kind not in self._kinds:
            kind = Kind(OTHER, reason.code, f"{status // 100}xx")
            self._routes.add(OTHER)
        count = self._kinds.setdefault(kind, _Count())
        self._known[route, reason._name_, status] = count
        return count

    def _route(self, route: str) -> str:
        if route not in self._routes and len(self._routes) >= MAX_ROUTES:
            route = OTHER
        self._routes.add(route)
        return route


def _buckets(counts: list[_Count]) -> list[_Bucket]:
    """Cumulative, as Prometheus wants them, each with its newest exemplar."""
    found: list[_Bucket] = []
    total = 0
    for place, bound in enumerate(BOUNDS):
        total += sum(count.buckets[place] for count in counts)
        exemplars = [count.exemplars[place] for count in counts if place in count.exemplars]
        newest = max(exemplars, key=lambda each: each.timestamp or 0.0, default=None)
        found.append((bound, float(total)) if newest is None else (bound, float(total), newest))
    return found

"""What the data plane counts: rate, errors and durations by route and reason, and how fast trust is withdrawn.

Labels are names of our own (routes, reasons, statuses), never anything that a client chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from foundation.reasons import Reason
from foundation.wire.health import Standing
from gateway.answers import MAX_ROUTES, OTHER, Answers
from gateway.proxy.http2_budget import Flood
from gateway.snapshot import SnapshotStore
from gateway.streams.registry import Registry
from policies.cached import CachedEngine
from policies.routes import Priority

ENDINGS = ("killed", "died")
"""How a worker ends unasked: by us, for it was silent, or by itself."""


class GatewayMetrics:
    """Implements `gateway.proxy.services.ProxyMetrics` on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answers = Answers(registry)
        self._connections = Gauge("sallyport_connections", "Client connections that are open", registry=registry)
        self._refused = Counter("sallyport_connections_refused", "Connections refused", ("reason",), registry=registry)
        self._shed = Counter("sallyport_requests_shed", "Requests turned away", ("priority",), registry=registry)
        self._flooded = Counter(
            "sallyport_http2_floods", "HTTP/2 connections ended for a flood", ("budget",), registry=registry
        )
        _begin(self._shed, Priority)
        _begin(self._flooded, Flood)
        self._dropped = Counter("sallyport_decisions_dropped", "Decisions no longer on record", registry=registry)
        about = "Lines of the access log that were not written"
        self._unlogged = Counter("sallyport_access_log_dropped", about, registry=registry)
        self._registry = registry

    def answered(
        self, route: str, reason: Reason, status: int, seconds: float, trace: str = "", at: float = 0.0
    ) -> None:
        """See `ProxyMetrics.answered`."""
        self.answers.answered(route, reason, status, seconds, trace, at)

    def connections(self, open_now: int) -> None:
        self._connections.set(open_now)

    def refused_connection(self, reason: Reason) -> None:
        self._refused.labels(reason.code).inc()

    def shed(self, priority: Priority) -> None:
        """A request of a route of this priority was turned away, so that others are served."""
        self._shed.labels(priority.value).inc()

    def flooded(self, flood: Flood) -> None:
        self._flooded.labels(flood.value).inc()

    def unlogged(self, count: int) -> None:
        """Requests that are not in the access log."""
        self._unlogged.inc(count)

    def dropped(self, count: int) -> None:
        """Decisions that the decision log did not keep, or keeps no longer."""
        self._dropped.inc(count)

    def watch(self, store: SnapshotStore, registry: Registry) -> None:
        """Read these when they are scraped."""

        def evaluated() -> int:
            policy = store.current.policy
            return policy.engine.evaluated if policy and isinstance(policy.engine, CachedEngine) else 0

        gauges = {
            "sallyport_exchanges_open": ("Exchanges under way", lambda: registry.open_count),
            "sallyport_decisions_evaluated": ("Decisions of this revision not from the cache", evaluated),
            "sallyport_policy_revision": ("The enforced revision", lambda: store.current.numbers.policy),
            "sallyport_revocations_number": ("Revocations known", lambda: store.current.numbers.revocations),
            "sallyport_heartbeat_timestamp_seconds": ("The authority's last heartbeat", lambda: store.heartbeat_at),
        }
        for name, (about, read) in gauges.items():
            Gauge(name, about, registry=self._registry).set_function(read)
        self._registry.register(_StreamsOpen(registry))

    def watch_tunnels(self, count: Callable[[], int]) -> None:
        """Read how many nodes hold tunnels here when it is scraped."""
        Gauge("sallyport_tunnels_open", "Nodes that hold a tunnel", registry=self._registry).set_function(count)


class _StreamsOpen(Collector):
    """Exchanges that outlived a tick, by route: those of most of them by name, as in `gateway.answers`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("sallyport_streams_open", "Exchanges that last, by route", labels=("route",))
        counts = sorted(self._registry.open_by_route().items(), key=lambda each: (-each[1], each[0]))
        for route, count in counts[:MAX_ROUTES]:
            family.add_metric((route,), count)
        if len(counts) > MAX_ROUTES:
            family.add_metric((OTHER,), sum(count for _, count in counts[MAX_ROUTES:]))
        yield family


class ProcessMetrics:
    """What the main process counts itself. `behind` tells by how many seconds the wall clock lags trust time: from a
    minute on, new certificates look not yet valid to TLS, which goes by the wall clock."""

    def __init__(self, registry: CollectorRegistry, behind: Callable[[], float]) -> None:
        self._dropped = Counter("sallyport_decisions_dropped", "Decisions no longer on record", registry=registry)
        self._ended = Counter("sallyport_workers_ended", "Workers that ended unasked", ("how",), registry=registry)
        _begin(self._ended, ENDINGS)
        self._ready = Gauge("sallyport_workers_ready", "Workers that carry the data plane", registry=registry)
        self._reloads = Counter("sallyport_reloads", "Reloads of the settings", ("result",), registry=registry)
        lag = Gauge("sallyport_clock_behind_seconds", "How far the wall clock lags trust time", registry=registry)
        lag.set_function(behind)
        self._nodes = Gauge(
            "sallyport_nodes", "Active nodes by how they stand, by their own reports", ("standing",), registry=registry
        )

    def dropped(self, count: int) -> None:
        """Decisions that the decision log keeps no longer."""
        self._dropped.inc(count)

    def nodes(self, counts: Mapping[Standing, int]) -> None:
        """How many nodes stand how; only where the authority is here."""
        for standing, count in counts.items():
            self._nodes.labels(standing.value).set(count)

    def worker_ended(self, how: str) -> None:
        """`how` is one of `ENDINGS`."""
        self._ended.labels(how).inc()

    def workers_ready(self, count: int) -> None:
        self._ready.set(count)

    def reloaded(self, result: str) -> None:
        """`result` is `applied`, `unchanged` or `refused`."""
        self._reloads.labels(result).inc()


def _begin(counter: Counter, values: Iterable[str]) -> None:
    """Let the series be there before the first event: a rate, and an alert on it, does not see what a series begins
    with."""
    for value in values:
        counter.labels(value)

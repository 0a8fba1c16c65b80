"""What `sallyport top` shows: read from metrics, carried as JSON, compared with the look before."""

from __future__ import annotations

import json

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import Heartbeat, IdentityChanged, SnapshotNumbers
from foundation.reasons import Reason
from gateway.live import BEYOND, Live, RouteCounts, Watch, counted
from gateway.metrics import GatewayMetrics
from gateway.scrape import Told
from gateway.snapshot import SnapshotStore
from gateway.streams.timing import CutTimes, StreamSettings
from gateway.top import top_view
from policies.staleness import StalenessSettings
from tests.fakes.clock import ManualClock
from tests.fakes.trust import record
from tests.gateway.streams.test_registry import Bench, permit


def registry_with(*, again: int = 0) -> CollectorRegistry:
    """What a busy gateway counts; `again` requests more than that."""
    registry, bench = CollectorRegistry(), Bench()
    metrics = GatewayMetrics(registry)
    cuts = CutTimes(registry, StreamSettings(), bench.clock)
    metrics.watch(bench.store, bench.registry)
    for _ in range(98 + again):
        metrics.answered("api", Reason.GRANTED, 200, 0.004)
    for _ in range(2):
        metrics.answered("api", Reason.GRANTED, 502, 0.7)
    metrics.answered("api", Reason.NO_GRANT, 403, 0.001)
    metrics.answered("", Reason.ROUTE_UNKNOWN, 404, 0.0)
    metrics.answered("[b]models[/b]", Reason.CUT_BY_REVOCATION, 200, 1e4)
    cuts(Reason.CUT_BY_REVOCATION, 0.02)
    cuts(Reason.CUT_BY_CHANGE, 9.0)
    metrics.connections(7)
    for number in range(3):
        bench.open(f"edge-{number}", f"{number}", permit())
    bench.registry.expire()
    return registry


def shown(now: Live, before: Live | None = None, **options: int) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # ends with the test
    console.print(top_view(now, before, **options))
    return console.export_text()


def test_metrics_are_read() -> None:
    live = counted(registry_with().collect())
    api = live.routes["api"]
    assert (api.ended, api.refused, api.failed, api.streams) == (101, 1, 2, 3)
    assert (api.quantile(0.5), api.quantile(0.99), api.quantile(1.0)) == (0.005, 1.0, 1.0)
    assert live.routes["[b]models[/b]"].quantile(0.5) == BEYOND
    assert live.refusals == {"no_grant": 1, "route_unknown": 1, "cut_by_revocation": 1}
    assert live.cuts == {"cut_by_revocation": 1, "cut_by_change": 1, "cut_by_deadline": 0}
    assert (live.late_cuts, live.connections, live.open) == (1, 7, 3)


def test_it_comes_back_from_json() -> None:
    live = counted(registry_with().collect())
    live.at, live.notes, live.staleness = 5.5, ["look"], "fresh"
    document = json.loads(json.dumps(live.to_json()))
    assert Live.parse(Fields(document, "live", Reason.MESSAGE_MALFORMED)) == live
    with pytest.raises(Fault):
        Live.parse(Fields(document | {"more": 1}, "live", Reason.MESSAGE_MALFORMED))


async def test_the_state_now() -> None:
    store, clock = SnapshotStore(), ManualClock()
    store.apply(Heartbeat(clock.now() - 40, SnapshotNumbers(0, 0, 0, 1)))
    store.apply(IdentityChanged(1, record()))

    async def gather() -> CollectorRegistry:
        return registry_with()

    async def ask(question: str) -> list[Told]:
        return [Told(1, 1, b"late"), Told(2, 2, b"")] if question == "note" else []

    live = await Watch(store, clock, StalenessSettings(), gather, ask, lambda: "a policy revision").now()
    assert (live.staleness, live.heartbeat_age, live.identities) == ("stale", 40.0, 1)
    assert (live.waiting_for, live.notes) == ("a policy revision", ["worker-1: late"])


def test_rates_are_of_what_came_between_two_looks() -> None:
    before, now = (counted(registry_with(again=count).collect()) for count in (0, 50))
    before.at, now.at = 100.0, 102.0
    text = shown(now, before)
    assert "25/s" in text
    row = next(line for line in text.splitlines() if line.startswith("api"))
    assert row.split()[1:] == ["25/s", "-", "-", "≤5", "ms", "≤5", "ms", "3"]
    assert "no grant allows this" in text


def test_without_a_look_before_there_are_counts() -> None:
    live = counted(registry_with().collect())
    live.waiting_for, live.notes = "the authority's facts", ["worker-1: 1 streams were cut late"]
    text = shown(live, rows=1)
    assert "traffic since the start" in text
    assert "! waiting for the authority's facts" in text
    assert "! worker-1: 1 streams were cut late" in text
    assert "… 2 more" in text


def test_nothing_in_it_is_markup_and_an_empty_gateway_can_be_shown() -> None:
    assert "[b]models[/b]" in shown(counted(registry_with().collect()))
    assert "no requests yet" in shown(Live())


def test_a_worker_that_began_anew_makes_no_negative_rates() -> None:
    assert RouteCounts(ended=1).since(RouteCounts(ended=5)).ended == 0

"""What is told of pools: the same from one worker as from many."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from gateway.proxy.upstream import UpstreamSettings
from gateway.upstreams.cli import _heading, _line
from gateway.upstreams.pool import LivePool
from gateway.upstreams.telling import PoolMetrics, encode, merged, overview
from policies.upstreams import Address, Outlier, Pool
from tests.fakes.clock import ManualClock

POOL = Pool(
    "store", (Address("10.0.0.5", 1), Address("10.0.0.6", 1)), outlier=Outlier(consecutive_failures=2, ejection=30)
)


def live() -> LivePool:
    return LivePool(POOL, UpstreamSettings(), ManualClock())


def ejecting() -> LivePool:
    pool = live()
    first = pool.endpoints[Address("10.0.0.5", 1)]
    first.failed()
    first.failed()
    first.active = 3
    return pool


def test_numbers_add_up_and_states_are_counted() -> None:
    (pool,) = merged([encode(overview([ejecting()])), encode(overview([live()])), encode(overview([ejecting()]))])
    first, second = pool["addresses"]
    assert (pool["pool"], pool["ejections"], pool["panicking"]) == ("store", 2, False)
    assert first["states"] == {"ejected": 2, "in_service": 1}
    assert (first["why"], first["active"], first["back_in_seconds"]) == ("2 failures in a row", 6, 30.0)
    assert second["states"] == {"in_service": 3}


def test_it_can_be_read() -> None:
    items = merged([encode(overview([ejecting()])), encode(overview([live()]))])
    assert _heading(items[0]).plain == "store  ejections 1"
    told = [" ".join(_line(each).plain.split()) for each in items[0]["addresses"]]
    assert told == [
        "10.0.0.5:1 ejected in 1 of 2 workers, in_service in 1 of 2 workers 3 under way, 0 connections "
        "2 failures in a row, back in 30 s",
        "10.0.0.6:1 in_service 0 under way, 0 connections",
    ]


def test_a_scraper_sees_pools_by_name_and_words_of_ours() -> None:
    registry, pools = CollectorRegistry(), [ejecting()]
    PoolMetrics(registry, lambda: overview(pools))
    page = generate_latest(registry).decode()
    samples: dict[str, Any] = dict(
        line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("sallyport_upstream")
    )
    assert samples['sallyport_upstream_addresses{pool="store",state="ejected"}'] == "1.0"
    assert samples['sallyport_upstream_events_total{event="ejections",pool="store"}'] == "1.0"
    assert samples['sallyport_upstream_active{pool="store"}'] == "3.0"
    assert "10.0.0" not in page

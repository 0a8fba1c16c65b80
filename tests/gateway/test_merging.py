"""The metrics of several processes, as one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.merging import Merged, dump, load
from gateway.scrape import Scrape, Told


def registry(count: int, revision: int) -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("sallyport_exchanges", "n", ("route",), registry=made).labels("api").inc(count)
    Histogram("sallyport_exchange_seconds", "s", buckets=(1,), registry=made).observe(count)
    Gauge("sallyport_connections", "c", registry=made).set(count)
    Gauge("sallyport_policy_revision", "r", registry=made).set(revision)
    Gauge("process_open_fds", "f", registry=made).set(10)
    return made


def text(merged: Merged) -> str:
    return generate_latest(merged).decode()  # type: ignore[arg-type]


def test_counts_add_up_and_the_one_that_lags_counts() -> None:
    told = text(Merged([load(dump(registry(2, 7))), load(dump(registry(3, 6)))]))
    assert 'sallyport_exchanges_total{route="api"} 5.0' in told
    assert "sallyport_exchange_seconds_count 2.0" in told
    assert "sallyport_exchange_seconds_sum 5.0" in told
    assert "sallyport_connections 5.0" in told
    assert "sallyport_policy_revision 6.0" in told


async def test_what_a_worker_counted_stays_when_it_has_ended() -> None:
    living = {11: registry(2, 7), 12: registry(3, 7)}

    async def ask() -> list[Told]:
        return [Told(number, life, dump(each)) for number, (life, each) in enumerate(living.items())]

    scrape = Scrape(CollectorRegistry(), ask, lambda: set(living))
    told = text(await scrape.gather())
    assert 'sallyport_exchanges_total{route="api"} 5.0' in told
    assert 'process_open_fds{process="worker-1"} 10.0' in told
    scrape.farewell(Told(1, 12, dump(registry(9, 7))))
    del living[12]
    for _ in range(2):
        told = text(await scrape.gather())
        assert 'sallyport_exchanges_total{route="api"} 11.0' in told
        assert "sallyport_connections 2.0" in told
        assert "worker-1" not in told

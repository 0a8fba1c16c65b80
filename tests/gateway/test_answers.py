"""Exchanges are counted by route, reason and status; labels are bounded; exemplars name recorded traces alone."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from foundation.reasons import Reason
from gateway.answers import BOUNDS, MAX_KINDS, MAX_ROUTES, OTHER, Answers

TRACE = "0af7651916cd43dd8448eb211c80319c"


def answers() -> tuple[Answers, CollectorRegistry]:
    registry = CollectorRegistry()
    return Answers(registry), registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def ended(registry: CollectorRegistry) -> float:
    """How many exchanges of all kinds."""
    (family,) = (each for each in registry.collect() if each.name == "sallyport_exchanges")
    return sum(sample.value for sample in family.samples)


def test_rate_errors_and_durations() -> None:
    counted, registry = answers()
    counted.answered("api", Reason.GRANTED, 200, 0.0004, "", 1.0)
    counted.answered("api", Reason.GRANTED, 200, 0.2, "", 1.0)
    counted.answered("api", Reason.NO_GRANT, 403, 0.001, "", 1.0)
    counted.answered("", Reason.ROUTE_UNKNOWN, 404, 0.0, "", 1.0)
    counted.answered("api", Reason.CUT_BY_CHANGE, 0, 1e6, "", 1.0)
    total = "sallyport_exchanges_total"
    assert value(registry, total, route="api", reason="granted", status="200") == 2
    assert value(registry, total, route="api", reason="no_grant", status="403") == 1
    assert value(registry, total, route="", reason="route_unknown", status="404") == 1
    assert value(registry, total, route="api", reason="cut_by_change", status="none") == 1
    bucket = "sallyport_exchange_seconds_bucket"
    assert value(registry, bucket, route="api", le="0.0005") == 1
    assert value(registry, bucket, route="api", le="0.001") == 2  # a bound is in its bucket
    assert value(registry, bucket, route="api", le="600.0") == 3
    assert value(registry, bucket, route="api", le="+Inf") == 4
    assert value(registry, "sallyport_exchange_seconds_sum", route="api") == 1e6 + 0.2014
    assert ended(registry) == 5


def test_labels_are_bounded_whatever_routes_and_statuses_come() -> None:
    counted, registry = answers()
    chance, exchanges = random.Random(0), 30_000
    for number in range(exchanges):
        counted.answered(f"r{number}", chance.choice(list(Reason)), chance.randrange(100, 600), 0.1, "", 1.0)
    families = {family.name: family for family in registry.collect()}
    ended = families["sallyport_exchanges"].samples
    assert len({sample.labels["route"] for sample in ended}) <= MAX_ROUTES + 1
    assert len(ended) <= MAX_KINDS + len(Reason) * 5
    assert sum(sample.value for sample in ended) == exchanges
    assert value(registry, "sallyport_exchange_seconds_count", route=OTHER) == exchanges - MAX_ROUTES
    assert {sample.labels["status"] for sample in ended if len(sample.labels["status"]) > 3} <= {"none"}


def test_kinds_are_bounded_too() -> None:
    counted, registry = answers()
    statuses = range(100, 600)
    for route in range(MAX_ROUTES):
        for status in statuses:
            counted.answered(f"r{route}", Reason.GRANTED, status, 0.1, "", 1.0)
    assert len(counted._kinds) <= MAX_KINDS + 5
    assert ended(registry) == MAX_ROUTES * len(statuses)


def test_exemplars_are_of_recorded_traces_and_the_newest_of_a_bucket() -> None:
    counted, registry = answers()
    counted.answered("api", Reason.GRANTED, 200, 0.002, "", 1.0)
    assert b"trace_id" not in generate_openmetrics(registry)
    counted.answered("api", Reason.GRANTED, 200, 0.002, "0" * 32, 2.0)
    counted.answered("api", Reason.NO_GRANT, 403, 0.0021, TRACE, 3.0)
    text = generate_openmetrics(registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    shown = [sample for sample in samples if sample.exemplar is not None]
    assert [(sample.labels["le"], sample.exemplar and sample.exemplar.labels) for sample in shown] == [
        ("0.0025", {"trace_id": TRACE})
    ]
    assert b"trace_id" not in generate_latest(registry)  # the older format knows none


def test_bounds_are_told_in_order() -> None:
    counted, registry = answers()
    counted.answered("api", Reason.GRANTED, 200, 0.2, "", 1.0)
    told = [line for line in generate_latest(registry).decode().splitlines() if "_bucket" in line]
    assert [line.split('le="')[1].split('"')[0] for line in told] == list(BOUNDS)

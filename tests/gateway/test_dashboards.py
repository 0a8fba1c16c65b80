"""What the dashboard and the alerts name is there: metrics, labels, and the sections of documents they point to."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from foundation.reasons import Reason
from foundation.wire.health import Standing
from gateway.metrics import GatewayMetrics, ProcessMetrics
from gateway.proxy.http2_budget import Flood
from gateway.streams.timing import CutTimes, StreamSettings
from pki.attest.metrics import AttestationMetrics
from pki.attest.service import LATCHING
from policies.routes import Priority
from tests.gateway.streams.test_registry import Bench, permit
from tests.support.dashboards import DASHBOARD, ROOT, SCRAPED, asked, metrics_of, rules


def everything() -> dict[str, set[str]]:
    """Every sample that a gateway can show, with its labels."""
    registry, bench = CollectorRegistry(), Bench()
    metrics, process = GatewayMetrics(registry), CollectorRegistry()
    main = ProcessMetrics(process, lambda: 0.0)
    CutTimes(registry, StreamSettings(), bench.clock)
    metrics.watch(bench.store, bench.registry)
    metrics.watch_tunnels(lambda: 0)
    metrics.answered("api", Reason.GRANTED, 200, 0.1)
    metrics.refused_connection(Reason.OVERLOADED)
    metrics.shed(next(iter(Priority)))
    metrics.flooded(next(iter(Flood)))
    main.worker_ended("died")
    main.nodes(dict.fromkeys(Standing, 0))
    attestations = AttestationMetrics(process)
    attestations.passed(1.0)
    bench.open("edge-1", "aa", permit())
    bench.registry.expire()
    found: dict[str, set[str]] = {}
    for each in (registry, process):
        for family in each.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_and_label_exists() -> None:
    known, named = everything(), set()
    for each in asked():
        assert each.metrics, each.text
        for metric in each.metrics:
            assert metric in known, metric
            assert each.labels <= known[metric], each.text
        assert each.shown <= each.grouped, each.text  # what a legend shows the sum has left
        named |= each.metrics
    assert len(named) > 15


def test_every_value_that_is_selected_exists() -> None:
    codes = {reason.code for reason in Reason}
    values = {"reason": codes, "result": codes, "standing": set(Standing), "status": {"5.."}}
    for each in asked():
        for label, selected in each.selected:
            assert label in SCRAPED or set(selected) <= values[label], each.text


def test_what_an_alert_counts_is_there_before_the_first() -> None:
    """`increase` does not see what a series begins with: a series that comes with its first event is no alert."""
    registry, process = CollectorRegistry(), CollectorRegistry()
    GatewayMetrics(registry)
    ProcessMetrics(process, lambda: 0.0)
    CutTimes(registry, StreamSettings(), Bench().clock)
    AttestationMetrics(process, LATCHING)
    samples = [sample for each in (registry, process) for family in each.collect() for sample in family.samples]
    counting = [each for each in asked() if "increase(" in each.text and "$" not in each.text]
    assert len(counting) >= 4
    for each in counting:
        (metric,) = each.metrics
        found = [sample.labels for sample in samples if sample.name == metric]
        assert found, metric
        for label, selected in each.selected:
            assert set(selected) <= {labels[label] for labels in found}, each.text


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    text = rule["annotations"]["description"]
    for section in re.findall(r'docs/operations\.md,\s+"([^"]+)"', text):
        assert re.search(rf"^#+ {re.escape(section)}$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        (metric,) = metrics_of(rule["expr"])
        assert label in everything()[metric] | SCRAPED


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells

"""What the dashboard and the alerts name is there: metrics, labels, and the sections of documents they point to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from foundation.reasons import Reason
from foundation.wire.health import Standing
from gateway.metrics import GatewayMetrics, ProcessMetrics
from gateway.proxy.http2_budget import Flood
from gateway.streams.timing import CutTimes, StreamSettings
from pki.attest.metrics import AttestationMetrics
from policies.routes import Priority
from tests.gateway.streams.test_registry import Bench, permit

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/dashboards/sallyport.json"
ALERTS = ROOT / "deploy/observability/alerts.yaml"
_METRIC = re.compile(r"sallyport_[a-z0-9_]+")
_BY = re.compile(r"by \(([a-z, ]+)\)")
_SELECTED = re.compile(r"([a-z_]+)(?:=~|!~|!=|=)\"")
SCRAPED = {"job", "instance"}  # Prometheus adds them


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


def expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["expr"] for each in dashboard["annotations"]["list"])
    yield from (each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query")
    for rule in rules():
        yield rule["expr"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_and_label_exists() -> None:
    known, named = everything(), set()
    for expression in expressions():
        metrics = _METRIC.findall(expression)
        assert metrics, expression
        labels = {label for group in _BY.findall(expression) for label in re.split(", *", group)}
        labels |= set(_SELECTED.findall(expression))
        for metric in metrics:
            assert metric in known, metric
            assert labels <= known[metric] | SCRAPED, expression
        named |= set(metrics)
    assert len(named) > 15


def test_every_reason_exists() -> None:
    for expression in expressions():
        for reasons in re.findall(r'reason(?:!~|=~|=)"([^"]+)"', expression):
            for code in reasons.split("|"):
                assert Reason.from_code(code)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    text = rule["annotations"]["description"]
    for section in re.findall(r'docs/operations\.md,\s+"([^"]+)"', text):
        assert re.search(rf"^#+ {re.escape(section)}$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        (metric,) = set(_METRIC.findall(rule["expr"]))
        assert label in everything()[metric] | SCRAPED


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells

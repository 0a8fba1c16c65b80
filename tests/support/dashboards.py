"""What the dashboard and the alerts ask Prometheus for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/dashboards/sallyport.json"
ALERTS = ROOT / "deploy/observability/alerts.yaml"
SCRAPED = {"job", "instance"}  # Prometheus adds them
_METRIC = re.compile(r"sallyport_[a-z0-9_]+")
_BY = re.compile(r"by \(([a-z, ]+)\)")
_SELECTED = re.compile(r"([a-z_]+)(?:=~|!~|!=|=)\"([^\"]*)\"")


@dataclass(frozen=True, slots=True)
class Asked:
    """One expression: the metrics that it names, the labels that it goes by or shows, and the values it selects."""

    text: str
    metrics: frozenset[str]
    grouped: frozenset[str]
    selected: tuple[tuple[str, tuple[str, ...]], ...]
    shown: frozenset[str] = frozenset()

    @property
    def labels(self) -> frozenset[str]:
        """All that are no scrape's own."""
        return (self.grouped | {label for label, _ in self.selected}) - SCRAPED


def asked() -> Iterator[Asked]:
    """Every expression of both."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield _asked(target["expr"], target.get("legendFormat", ""))
    for each in dashboard["annotations"]["list"]:
        yield _asked(each["expr"])
    for each in dashboard["templating"]["list"]:
        if each["type"] == "query":
            yield _asked(each["query"]["query"])
    for rule in rules():
        yield _asked(rule["expr"])


def rules() -> list[dict[str, Any]]:
    """The alerts."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def metrics_of(expression: str) -> frozenset[str]:
    return frozenset(_METRIC.findall(expression))


def _asked(expression: str, legend: str = "") -> Asked:
    grouped = frozenset(label for group in _BY.findall(expression) for label in re.split(", *", group))
    selected = tuple((label, tuple(values.split("|"))) for label, values in _SELECTED.findall(expression))
    return Asked(expression, metrics_of(expression), grouped, selected, frozenset(re.findall(r"{{(\w+)}}", legend)))

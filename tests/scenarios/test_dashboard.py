"""What the dashboard and the alerts ask for, a running system's /metrics has: every process's, merged."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.support.dashboards import asked
from tests.support.system import MakeTpm, System

_ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def test_the_page_has_every_metric_and_label_that_is_asked_for(system: System, make_tpm: MakeTpm) -> None:
    node = system.add_node("watched", make_tpm("watched"))
    node.enrol()
    with node.connect() as client:
        assert client.get("/version").status == 200
        watch = client.watch("ZGFzaA==")
        system.operate("inventory", "quarantine", node.name)
        assert watch.ending() == "cut"
    status, page = system.page("/metrics")
    assert status == 200
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for ending in _ENDINGS.get(family.type, ()):
            labels.setdefault(family.name + ending, set())
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    for each in asked():
        for metric in each.metrics:
            assert metric in labels, each.text
            assert not labels[metric] or each.labels <= labels[metric], each.text

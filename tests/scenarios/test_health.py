"""Health for the service manager, metrics for the scraper. (Not ready without a policy: tests of restarts.)"""

from __future__ import annotations

import re
import socket

from prometheus_client.parser import text_string_to_metric_families

from tests.support.system import MakeTpm, System

OURS = {"route", "reason", "status", "le", "pool", "event", "state", "how", "result", "standing", "budget", "priority"}


def test_a_process_that_lives_and_is_ready_says_so(system: System) -> None:
    assert system.page("/healthz")[0] == 200
    assert system.readiness() == (200, {"ready": True, "waiting": {}, "notes": {}})


def test_the_pages_are_on_loopback_alone(system: System) -> None:
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as client:
            client.settimeout(5)
            assert client.connect_ex((address, system.ports["health"])) != 0


def test_metrics_tell_rate_errors_and_durations(system: System, make_tpm: MakeTpm) -> None:
    node = system.add_node("measured", make_tpm("measured"))
    node.enrol()
    before = _samples(system)
    with node.connect() as client:
        assert client.get("/version").status == 200
        assert client.ask("DELETE", "/version").status == 403
        assert client.get("/version//").status == 400
    after = _samples(system)
    for labels in (
        {"route": "control-plane", "reason": "granted", "status": "200"},
        {"route": "control-plane", "reason": "method_not_granted", "status": "403"},
        {"route": "", "reason": "path_ambiguous", "status": "400"},
    ):
        key = ("sallyport_exchanges_total", tuple(sorted(labels.items())))
        assert after[key] == before.get(key, 0) + 1
    seconds = ("sallyport_exchange_seconds_count", (("route", "control-plane"),))
    assert after[seconds] == before.get(seconds, 0) + 2
    for name in ("connections", "exchanges_open", "policy_revision", "heartbeat_timestamp_seconds"):
        assert (f"sallyport_{name}", ()) in after


def test_no_client_makes_a_label(system: System, make_tpm: MakeTpm) -> None:
    node = system.add_node("chooser", make_tpm("chooser"))
    node.enrol()

    def choose(number: int) -> None:
        with node.connect() as client:
            client.get(f"/chosen-{number}")
            client.ask("GET", "/version", Host=f"chosen-{number}.example", User_Agent=f"chosen-{number}")
            client.ask(f"CHOSEN{'X' * number}", "/version")

    choose(1)
    before = _samples(system)
    for number in range(2, 8):
        choose(number)
    after = _samples(system)
    assert set(after) == set(before)
    assert {name for _, labels in after for name, _ in labels} <= OURS
    assert not [value for _, labels in after for _, value in labels if re.search("chosen|CHOSEN|chooser", value)]


def _samples(system: System) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Our own samples: (name, labels) → value."""
    status, text = system.page("/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("sallyport_") and not sample.name.endswith("_created")
    }


def test_top_shows_what_the_gateway_does(system: System) -> None:
    live = system.operate("top", "--json").json
    assert live["workers"] >= 1
    assert (live["staleness"], live["waiting_for"], live["notes"]) == ("fresh", "", [])
    assert {"revision", "routes", "refusals", "cuts"} <= set(live)
    assert "control-plane" in system.operate("top", "--once", "--interval", "0.2").out

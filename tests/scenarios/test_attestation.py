"""A node proves itself again and again: `sallyport node attest` against a whole system, with an emulated TPM, and what
its silence, its failure and its coming back do to its requests and its open streams."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.processes import PATIENCE
from tests.support.system import Client, MakeSystem, MakeTpm, Node, System

KEY = "YXR0ZXN0"
HOLDS = 10.0  # seconds; a push on a busy machine takes some of them
ROUNDS = """
[enrolment.attestation]
interval = "1s"
holds = "10s"
"""


@pytest.fixture(scope="module")
def system(make_system: MakeSystem) -> Iterator[System]:
    own = make_system("attestation")
    own.config.write_text(own.config.read_text() + ROUNDS)
    with own.running():
        yield own


def _attest(node: Node) -> float:
    """One push, and until when it holds by the authority's clock, which is ours."""
    told = json.loads(node.run("attest", "--json").out)
    return time.mktime(time.strptime(told["attested_until"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def _node(system: System, make_tpm: MakeTpm, name: str) -> Node:
    node = system.add_node(name, make_tpm(name), role="edge-agent")
    node.enrol()
    return node


def _reason(node: Node) -> str:
    with node.connect() as client:
        return client.post("/v3/watch", {"create_request": {"key": KEY}}).reason


def _sees_events(system: System, client: Client) -> bool:
    watch = client.watch(KEY)
    body = json.dumps({"key": KEY, "value": "MQ=="}).encode()
    request = urllib.request.Request(f"{system.control_plane}/v3/kv/put", body)  # noqa: S310  # our own, on loopback
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310  # as above
    return bool(watch.line()["result"]["events"])


def test_rounds_keep_a_stream_silence_cuts_it_and_one_push_brings_back(system: System, make_tpm: MakeTpm) -> None:
    node = _node(system, make_tpm, "attesting")
    with node.connect() as client:
        watch = client.watch(KEY)
        opened = time.time()
        first = until = _attest(node)
        assert until - opened < HOLDS + PATIENCE
        while time.time() < first:
            until = _attest(node)
        before = system.ended_for("cut_by_deadline")
        assert before == 0
        assert watch.ending() == "cut"
        assert time.time() >= until
        assert system.ended_for("cut_by_deadline") == 1
    assert _reason(node) == "attestation_expired"
    _attest(node)
    with node.connect() as client:
        assert _sees_events(system, client)


def test_a_failure_stays_until_it_is_cleared_and_one_push_brings_back(system: System, make_tpm: MakeTpm) -> None:
    """The clone alarm fails the node; cleared, it comes back by the same certificate."""
    node = _node(system, make_tpm, "failing")
    _attest(node)
    newest = node.folder / "newest"
    shutil.copytree(node.settings.directory, node.folder / "older")
    node.renew()
    node.renew()
    shutil.copytree(node.settings.directory, newest)
    node.write_settings(directory=str(node.folder / "older"))
    assert "clone_suspected" in node.renew(expect=1).err
    assert "certificate_superseded" in node.run("attest", expect=1).err
    node.write_settings(directory=str(newest))
    assert "attestation_latched" in node.run("attest", expect=1).err
    assert _reason(node) == "posture_failed"
    system.operate("inventory", "clear-failure", node.name)
    assert _reason(node) == "posture_failed"
    _attest(node)
    with node.connect() as client:
        assert _sees_events(system, client)


def test_it_is_counted(system: System, make_tpm: MakeTpm) -> None:
    node = _node(system, make_tpm, "counted")
    _attest(node)
    status, page = system.page("/metrics")
    assert status == 200
    assert 'sallyport_attestations_total{result="passed"}' in page
    assert 'sallyport_attestations_total{result="asked"}' in page
    assert "sallyport_attestation_age_seconds_count" in page

"""Row "stolen node" (kubeedge#4730, #6227), where a gateway has several workers: what is revoked is cut in each, in one
that hangs too, and none that starts later knows less."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.processes import wait_until
from tests.support.system import MakeTpm, Node, System


@pytest.fixture
def node(system: System, make_tpm: MakeTpm) -> Node:
    name = f"taken-{len(system.api.get('/v1/inventory', limit=1000)['items'])}"
    made = system.add_node(name, make_tpm(name))
    made.enrol()
    return made


@pytest.fixture
def settled(system: System) -> Iterator[System]:
    """A system whose workers the test may end."""
    yield system
    for pid in system.workers:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: system.readiness()[0] == 200, "the workers")


def test_a_worker_that_hangs_carries_nothing_on(settled: System, node: Node) -> None:
    before = settled.workers
    with node.connect() as client:
        watch = client.watch("aGFuZ3M=")
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        reach = settled.operate("inventory", "revoke", node.name, "--json").json["gateways"]
        assert watch.ending() == "cut"
    assert (reach["acknowledged"], reach["unacknowledged"]) == (1, []), "in force once they were dead"
    wait_until(lambda: settled.readiness()[0] == 200, "other workers")
    assert not before & settled.workers


def test_a_worker_that_starts_later_knows_what_was_revoked(settled: System, node: Node) -> None:
    settled.operate("inventory", "revoke", node.name)
    before = settled.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    with node.connect() as client:  # it waits for whoever comes to accept it
        assert client.get("/version").reason == "identity_revoked"
    assert not before & settled.workers

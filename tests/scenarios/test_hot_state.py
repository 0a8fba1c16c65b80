"""A system whose hot state is at a Redis server that dies and comes back: who is in stays in, who wants in waits, and
nothing needs a restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.identifiers import Kind, SpiffeId
from gateway.broker.siblings import SiblingTable
from gateway.plane import SIBLINGS
from tests.support.processes import wait_until
from tests.support.redis import RedisServer, redis_server
from tests.support.system import DOMAIN, MakeSystem, MakeTpm, System

WORKERS = 2


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def system(make_system: MakeSystem, redis: RedisServer) -> Iterator[System]:
    made = make_system("hot-state")
    made.edit("workers = 0 ", f"workers = {WORKERS} ")
    put_hot_state_at(made, redis.socket)
    with made.running():
        yield made


def put_hot_state_at(system: System, socket: Path) -> None:
    system.config.write_text(system.config.read_text() + f'\n[hotstate.redis]\nurl = "unix://{socket}"\n')


def grade_of_hot_state(system: System) -> str:
    found = system.commands.run("doctor", "--config", str(system.config), "--json").json
    [grade] = [finding["grade"] for finding in found if finding["check"] == "hot state"]
    return str(grade)


def test_without_redis_nobody_enrols_others_are_served_and_then_it_goes_on(
    system: System, redis: RedisServer, make_tpm: MakeTpm
) -> None:
    early, late = (system.add_node(name, make_tpm(name)) for name in ("early", "late"))
    early.enrol()
    assert grade_of_hot_state(system) == "good"
    redis.kill()
    assert "hot_state_unavailable" in late.enrol(expect=1).err
    early.call("GET", "/version")
    with system.connect_operator("api") as operator:
        assert operator.get("/v1/gateway").status == 200
    assert grade_of_hot_state(system) == "bad"
    redis.start()
    late.enrol()
    late.call("GET", "/version")


def test_a_server_that_may_forget_stops_the_start(make_system: MakeSystem) -> None:
    with redis_server("--maxmemory-policy", "allkeys-lru") as forgetful:
        made = make_system("forgetful")
        put_hot_state_at(made, forgetful.socket)
        made.launch()
        assert made.process is not None
        assert made.process.wait() != 0
        assert "noeviction" in made.process.told()


def test_a_start_while_redis_is_away_succeeds(make_system: MakeSystem, tmp_path: Path) -> None:
    made = make_system("alone")
    put_hot_state_at(made, tmp_path / "nobody")
    with made.running():
        assert made.readiness()[0] == 200


def test_the_tunnels_of_a_worker_that_died_are_held_by_nobody(system: System) -> None:
    tables = [SiblingTable.shared(system.state / SIBLINGS, number) for number in range(WORKERS)]
    nodes = [SpiffeId(DOMAIN, Kind.NODE, f"of-{number}") for number in range(WORKERS)]
    for table, node in zip(tables, nodes, strict=True):
        table.claim(node)
    before = system.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(system.workers - before) == WORKERS, "new workers")
    assert [tables[0].owner(node) for node in nodes] == [None] * WORKERS
    for table in tables:
        table.close()

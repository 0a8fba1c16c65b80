"""Several workers under one main process: what dies is replaced, what is silent is killed, and reload and upgrade lose
nothing. Real processes, a real client, counted."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.processes import listens, wait_until
from tests.support.system import Client, MakeSystem, MakeTpm, Node, System

WORKERS = 2
OPERATOR_GRANT = (
    "  - {id: look, role: operator, route: control-plane, methods: [GET], paths: [/version], expires: 2027-12-31}\n"
)
REQUESTS = 150  # that must have been answered after what is tested, so that it was tested


@pytest.fixture(scope="module")
def pool(make_system: MakeSystem) -> Iterator[System]:
    """A system with two workers."""
    system = make_system("workers")
    system.edit("workers = 0 ", f"workers = {WORKERS} ")
    with system.running():
        system.add_policy(grants=f"\n{OPERATOR_GRANT}", roles="\n  operator: Whoever looks\n")
        system.publish()
        yield system


@pytest.fixture
def node(pool: System, make_tpm: MakeTpm, request: pytest.FixtureRequest) -> Node:
    name = request.node.originalname.replace("_", "-")[5:40].strip("-")
    made = pool.add_node(name, make_tpm(name))
    made.enrol()
    return made


def ready(system: System) -> bool:
    return system.readiness()[0] == 200


def counted(system: System, name: str) -> float:
    lines = [line for line in system.page("/metrics")[1].splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1]) if lines else 0.0


def goes_on(load: Load, count: int = REQUESTS) -> None:
    """Until so many more were answered."""
    wanted = load.answers[200] + count
    wait_until(lambda: load.answers[200] >= wanted, "answers")


def test_every_worker_carries_its_part_and_counts_are_of_all(pool: System, node: Node) -> None:
    assert len(pool.workers) == WORKERS
    before = pool.ended_for("granted")
    ids = []
    for _ in range(12):
        with node.connect() as client:
            answered = client.get("/version")
            assert answered.status == 200
            ids.append(answered.decision)
    assert pool.ended_for("granted") == before + 12
    assert len(set(ids)) == 12
    writers = [path for path in (pool.state / "decisions").glob("worker-*") if list(path.glob("*.jsonl"))]
    assert len(writers) == WORKERS, "one worker took everything"
    for each in ids:
        assert pool.operate("explain", each, "--json").json["allowed"]


def test_a_worker_holds_nothing_of_the_authority(pool: System) -> None:
    for pid in pool.workers:
        process = Path(f"/proc/{pid}")
        held = {os.readlink(each) for each in (process / "fd").iterdir()}
        own = str(pool.state / "decisions" / "worker-")
        kept = {path for path in held if path.startswith(str(pool.state)) and not path.startswith(own)}
        assert kept <= {str(pool.state / name) for name in ("rates", "relay", "seats", "siblings")}, kept
        mapped = (process / "maps").read_text()
        assert "sqlalchemy" not in mapped
        assert "aiohttp" not in mapped
        told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert b"passphrase" not in told
        assert b"PRIVATE KEY" not in told


def test_a_revision_is_in_force_in_every_worker_at_once(pool: System, node: Node) -> None:
    revision = pool.publish()
    for _ in range(8):
        with node.connect() as client:
            decision = client.get("/version").decision
        assert pool.api.get(f"/v1/decisions/{decision}")["revision"] == revision


def test_a_worker_that_dies_is_replaced_and_no_connection_is_turned_away(pool: System, node: Node) -> None:
    before = pool.workers
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    for _ in range(12):
        with node.connect() as client:
            assert client.get("/version").status == 200
    wait_until(lambda: len(pool.workers) == WORKERS and ready(pool), "another worker")
    assert victim not in pool.workers
    assert counted(pool, 'sallyport_workers_ended_total{how="died"}') == 1


def test_idle_workers_are_left_alone(pool: System, node: Node) -> None:
    before = pool.workers
    beats = counted(pool, "sallyport_heartbeat_timestamp_seconds")
    wait_until(lambda: counted(pool, "sallyport_heartbeat_timestamp_seconds") > beats, "a heartbeat")
    assert pool.workers == before


def test_a_reload_replaces_the_workers_and_loses_no_request(pool: System, node: Node) -> None:
    before = pool.workers
    with node.connect() as client, Load(pool.connect_operator, "/version").running() as load:
        watch = client.watch("cmVsb2Fk")
        goes_on(load)
        pool.edit("workers = 2 ", "workers = 3 ")
        assert pool.process is not None
        pool.process.signal(signal.SIGHUP)
        wait_until(lambda: len(pool.workers - before) == 3 and ready(pool), "new workers")
        goes_on(load)
        pool.edit("workers = 3 ", "workers = 2 ")
        pool.process.signal(signal.SIGHUP)
        wait_until(lambda: counted(pool, "sallyport_workers_ready") == WORKERS, "new workers")
        goes_on(load)
        pool.operate("inventory", "revoke", node.name)
        assert watch.ending() == "cut", "a stream of a retired worker outlived its permission"
        load.answers.clear()
    assert load.lost == []
    wait_until(lambda: len(pool.workers) == WORKERS, "the retired to end")


@pytest.mark.parametrize(
    ("before", "after", "code", "field"),
    [
        ("workers = 2 ", 'workers = "many" ', "setting_invalid", "gateway.workers"),
        ("workers = 2 ", "wrokers = 2 ", "setting_unknown", "gateway"),
        ('total_size = "1GiB" ', 'total_size = "2GiB" ', "setting_fixed", "decisions.total_size"),
    ],
)
def test_a_setting_that_is_no_good_is_refused_by_name_and_the_old_stay(
    pool: System, before: str, after: str, code: str, field: str
) -> None:
    serving = pool.workers
    refused = counted(pool, 'sallyport_reloads_total{result="refused"}')
    pool.edit(before, after)
    assert pool.process is not None
    pool.process.signal(signal.SIGHUP)
    wait_until(lambda: counted(pool, 'sallyport_reloads_total{result="refused"}') > refused, "the refusal")
    pool.edit(after, before)
    event = [record for record in pool.audited() if record["kind"] == "settings.refused"][-1]
    assert (event["reason"], event["subject"]) == (code, field)
    assert pool.workers == serving
    assert ready(pool)
    with pool.connect_operator() as client:
        assert client.get("/version").status == 200


def test_an_upgrade_keeps_the_process_and_loses_no_request(pool: System, node: Node) -> None:
    before = pool.workers
    with node.connect() as client, Load(pool.connect_operator, "/version").running() as load:
        watch = client.watch("dXBncmFkZQ==")
        goes_on(load)
        assert pool.process is not None
        pool.process.signal(signal.SIGUSR2)
        wait_until(lambda: counted_safely(pool, "sallyport_workers_ready") == WORKERS and pool.workers - before, "it")
        wait_until(lambda: ready(pool), "the new process")
        goes_on(load)
        pool.operate("inventory", "revoke", node.name)
        assert watch.ending() == "cut", "a stream of a retired worker outlived its permission"
    assert load.lost == []
    assert pool.process.process.poll() is None
    assert "upgrade.begun" in [record["kind"] for record in pool.audited()]
    wait_until(lambda: len(pool.workers) == WORKERS and not pool.workers & before, "the retired to end")


def test_the_commands_reload_and_upgrade_under_load_and_lose_no_request(pool: System, node: Node) -> None:
    before = pool.workers
    with Load(pool.connect_operator, "/version").running() as load:
        goes_on(load)
        pool.edit("workers = 2 ", "workers = 3 ")
        assert "gateway.workers" in pool.operate("reload", "--check").out
        assert pool.workers == before
        done = pool.operate("reload", "--json").json
        assert (done["taken"], done["problem"]) == (["gateway.workers"], None)
        goes_on(load)
        assert len(pool.workers - before) == 3
        serving = pool.workers - before
        pool.edit("workers = 3 ", "workers = 0x ")
        refused = pool.operate("reload", expect=1)
        assert "setting_invalid" in refused.err
        assert "what to do" in refused.err
        goes_on(load)
        assert serving <= pool.workers
        pool.edit("workers = 0x ", "workers = 2 ")
        assert pool.operate("reload", "--json").json["taken"] == ["gateway.workers"]
        assert "nothing" in pool.operate("reload").out
        goes_on(load)
        serving = pool.workers
        done = pool.operate("upgrade", "--drain", "60", "--json").json
        assert pool.process is not None
        assert (done["pid"], done["workers"]) == (pool.process.pid, {"ready": 2, "wanted": 2, "retiring": 0})
        goes_on(load)
    assert load.lost == []
    wait_until(lambda: len(pool.workers) == WORKERS and not pool.workers & serving, "the retired to end")
    actor = "spiffe://fleet.example/operator/local-uid-"
    told = [each["kind"] for each in pool.audited() if each["actor"].startswith(actor)]
    assert [kind for kind in told if kind != "root.acted"][-4:] == [
        "settings.reloaded",
        "settings.refused",
        "settings.reloaded",
        "upgrade.begun",
    ]


def test_new_code_that_does_not_start_is_told_and_the_old_serves_on(pool: System) -> None:
    serving = pool.workers
    pool.edit("workers = 2 ", "wrokers = 2 ")
    refused = pool.operate("upgrade", expect=1)
    pool.edit("wrokers = 2 ", "workers = 2 ")
    assert "new_code_refused" in refused.err
    assert "wrokers" in refused.err
    assert pool.workers == serving
    with pool.connect_operator() as client:
        assert client.get("/version").status == 200


def test_signals_while_the_process_is_replaced_end_nobody(pool: System) -> None:
    """By default SIGHUP ends a process; between two incarnations nobody has said otherwise."""
    instance = pool.api.get("/v1/gateway/process")["instance"]
    assert pool.process is not None
    pool.process.signal(signal.SIGUSR2)
    patience = 0.05

    def another() -> bool:
        nonlocal patience
        assert pool.process is not None
        pool.process.signal(signal.SIGHUP)
        patience = min(1.2 * patience, 2.0)  # a busy machine answers later
        return bool(instance_of(pool, patience) not in {instance, ""})

    wait_until(another, "the new process")
    assert pool.process.process.poll() is None
    wait_until(lambda: ready(pool), "workers")


def instance_of(system: System, patience: float) -> str:
    """Which incarnation is ready; empty when none says so within `patience` seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", system.ports["health"], timeout=patience)
    try:
        connection.request("GET", "/readyz")
        if connection.getresponse().status != 200:
            return ""
    except OSError:
        return ""
    finally:
        connection.close()
    return str(system.api.get("/v1/gateway/process")["instance"])


def counted_safely(system: System, name: str) -> float:
    try:
        return counted(system, name)
    except OSError:
        return 0.0


def test_workers_without_their_main_process_let_go(make_system: MakeSystem, make_tpm: MakeTpm) -> None:
    system = make_system("orphans")
    system.edit("workers = 0 ", "workers = 2 ")
    with system.running():
        node = system.add_node("orphan", make_tpm("orphan"))
        node.enrol()
        with node.connect() as client:
            watch = client.watch("b3JwaGFu")
            left = system.workers
            system.kill()
            wait_until(lambda: not listens(system.ports["gateway"]), "the workers to accept no more")
            assert watch.ending() in {"cut", "whole"}
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "the workers to end")
        system.start()
        with node.connect() as client:
            assert client.get("/version").status == 200


def test_an_identitys_connections_are_bounded_for_all_workers_together(make_system: MakeSystem) -> None:
    system = make_system("seats")
    system.edit("workers = 0 ", "workers = 2 ")
    system.edit("[gateway.listener]\n", "[gateway.listener]\nconnections_per_identity = 5\n")
    with system.running(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(system.connect_operator()) for _ in range(5)]
        assert {client.get("/version").status for client in clients} == {403}
        for _ in range(4):
            with system.connect_operator() as client:
                assert client.get("/version").reason == "connection_limit"
        os.kill(min(system.workers), signal.SIGKILL)
        wait_until(lambda: len(system.workers) == 2 and ready(system), "another worker")
        left = sum(answers_still(client) for client in clients)
        again = [stack.enter_context(system.connect_operator()).get("/version").status for _ in range(6)]
        assert left + again.count(403) == 5, "what the dead worker carried counts no longer"
        assert again.count(429) == 1 + left


def answers_still(client: Client) -> bool:
    try:
        return client.get("/version").status == 403
    except (OSError, http.client.HTTPException):
        return False

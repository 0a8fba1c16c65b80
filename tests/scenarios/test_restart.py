"""What a restart keeps, and what a crash cannot break."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from agent.enrol import enrol
from foundation.api import OCTETS
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.wire.enrolment import Token
from tests.support.peers import HeldService
from tests.support.processes import PATIENCE, listens, wait_until
from tests.support.system import MakeSystem, MakeTpm, Node, System

AHEAD = 600.0  # seconds


class Before:
    """A system with a history, while it runs for the first time: a node in good standing, a revoked one, one that
    failed, a revision, and a denied decision."""

    def __init__(self, system: System, make_tpm: MakeTpm) -> None:
        self.system = system
        self.good, self.revoked, self.failed = (
            system.add_node(name, make_tpm(name)) for name in ("good", "revoked", "failed")
        )
        for node in (self.good, self.revoked, self.failed):
            node.enrol()
        system.operate("inventory", "revoke", "revoked")
        _fail(self.failed)
        with self.good.connect() as client:
            self.decision = client.ask("DELETE", "/version").decision
        self.log = system.audited()
        self.numbers = system.numbers()


def _fail(node: Node) -> None:
    """Have two holders of one certificate: the clone alarm latches the node's failure."""
    shutil.copytree(node.settings.directory, node.folder / "stolen")
    node.renew()
    node.renew()
    shutil.rmtree(node.settings.directory)
    shutil.copytree(node.folder / "stolen", node.settings.directory)
    assert "clone_suspected" in node.renew(expect=1).err


@pytest.fixture(scope="module")
def held() -> Iterator[HeldService]:
    with HeldService().running() as service:
        yield service


def test_a_restart_drains_and_keeps_what_was_known(
    make_system: MakeSystem, make_tpm: MakeTpm, held: HeldService
) -> None:
    system = make_system("restart")
    with system.running():
        _publish_held_route(system, held)
        before = Before(system, make_tpm)
        _drains(system, before.good, held)
        floor = system.set_trust_time_ahead(AHEAD)
        system.start()

        assert system.numbers() == before.numbers
        log = system.audited()
        assert log[: len(before.log)] == before.log
        assert datetime.fromisoformat(log[-1]["time"]).timestamp() >= floor

        with before.good.connect() as client:
            assert client.get("/version").status == 200
        with before.revoked.connect() as client:
            assert client.get("/version").reason == "identity_revoked"
        with before.failed.connect() as client:
            assert client.get("/version").reason == "posture_failed"
        assert system.operate("explain", before.decision, "--json").json["reasons"] == ["method_not_granted"]

        _refuses_an_older_revision(system)


def _publish_held_route(system: System, held: HeldService) -> None:
    system.add_policy(
        f"\n  - {{name: held, prefix: /held, upstreams: ['{held.url}'], kinds: [node]}}\n",
        "\n  - {id: held, role: edge-agent, route: held, methods: [GET], paths: [/held], expires: 2027-12-31}\n",
    )
    system.publish()


def _drains(system: System, node: Node, held: HeldService) -> None:
    """SIGTERM: no more is accepted, the response under way comes whole, the process ends well."""
    assert system.process is not None
    with node.connect() as client:
        client.connection.request("GET", "/held")
        response = client.connection.getresponse()
        assert response.read(4) == b"half"
        system.process.signal(signal.SIGTERM)
        wait_until(lambda: not listens(system.ports["gateway"]), "the gateway to accept no more")
        held.release.set()
        assert response.read() == b"half"
    assert system.process.wait() == 0


def _refuses_an_older_revision(system: System) -> None:
    bundle = system.folder / f"revision-{system.revision}.bundle"
    older = system.renumbered(bundle, system.revision - 1)
    assert "revision_downgrade" in system.operate("policy", "publish", str(older), expect=1).err


def test_a_restored_authority_cannot_bring_back_an_older_revision(make_system: MakeSystem) -> None:
    system = make_system("restored")
    backup = system.folder / "backup.db"
    shutil.copy(system.state / "sallyport.db", backup)
    with system.running():
        system.publish()
    for name in ("sallyport.db-wal", "sallyport.db-shm"):
        (system.state / name).unlink(missing_ok=True)
    shutil.copy(backup, system.state / "sallyport.db")
    with system.unready():
        refused = [record for record in system.audited() if record["kind"] == "policy.refused"]
        assert [record["reason"] for record in refused] == ["revision_downgrade"]
        waiting = {"policy and facts": "a policy revision"}
        assert system.readiness() == (503, {"ready": False, "waiting": waiting, "notes": {}})
        with system.connect_operator() as client:
            assert client.get("/version").reason == "revision_missing"


NODES, CRASHES = 4, 2
# An issuing that the crash interrupted is given up by then; certificates are backdated by more.
GIVEN_UP = 15.0
_REVISIONS = "/v1/policy/revisions"


def test_kill_9_amid_enrolments_and_publishing_leaves_nothing_unrecorded(
    make_system: MakeSystem, make_tpm: MakeTpm
) -> None:
    system = make_system("crash")
    with system.running():
        bundle = system.build()
        for crash in range(CRASHES):
            nodes = [system.add_node(f"n{crash}-{i}", make_tpm(f"n{crash}-{i}")) for i in range(NODES)]
            tokens = {node: Token.parse(node.token().read_text().strip()) for node in nodes}
            acknowledged = _crash_amid(system, tokens, bundle)
            system.set_trust_time_ahead(GIVEN_UP)
            system.start()
            for node in _without_identity(nodes):
                asyncio.run(_enrol(node, tokens[node]))
            _is_consistent(system, nodes)
            assert acknowledged <= system.numbers()["policy"] <= system.revision


def _crash_amid(system: System, tokens: dict[Node, Token], bundle: Path) -> int:
    """All enrol at once while revisions are published; the kill comes with the first answer. The newest revision whose
    publishing was acknowledged."""
    first, acknowledged = threading.Event(), [system.numbers()["policy"]]

    def one(node: Node) -> None:
        try:
            asyncio.run(_enrol(node, tokens[node]))
        except Fault:
            return
        first.set()

    def publish() -> None:
        api = system.api
        try:
            while True:
                system.revision += 1
                raw = system.renumbered(bundle, system.revision).read_bytes()
                acknowledged.append(json.loads(api.send("POST", _REVISIONS, raw, OCTETS))["revision"])
        except Fault:
            return

    with ThreadPoolExecutor(NODES + 1) as pool:
        for node in tokens:
            pool.submit(one, node)
        pool.submit(publish)
        assert first.wait(PATIENCE)
        system.kill()
    return acknowledged[-1]


def _without_identity(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if not (node.settings.directory / "identity.json").exists()]


async def _enrol(node: Node, token: Token) -> None:
    """As the agent does; an answer that was lost is asked for again."""
    await enrol(node.settings, token, node.store, SystemClock(), lambda step: None)


def _is_consistent(system: System, nodes: list[Node]) -> None:
    ledger = system.certificates()
    for node in nodes:
        assert ledger[node.serial]["step"] == "issued"
        assert ledger[node.serial]["identity"] == node.id
        with node.connect() as client:
            assert client.get("/version").status == 200
    log = system.audited()
    issued = {record["detail"]["serial"] for record in log if record["kind"] == "certificate.issued"}
    assert {serial for serial, row in ledger.items() if row["step"] == "issued"} <= issued
    with sqlite3.connect(system.state / "sallyport.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)

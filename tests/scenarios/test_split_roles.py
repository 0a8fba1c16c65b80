"""Authority and gateway on machines of their own: what the one decides the other enforces, and goes on enforcing when
it hears nothing."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Done
from tests.support.processes import wait_until
from tests.support.split import Gateway, only_authority
from tests.support.system import DOMAIN, MakeSystem, MakeTpm, Node, System

KEY = "c3BsaXQ="
EXPIRED = 600
"""Seconds: longer than a start takes on the busiest machine, and much shorter than a certificate lasts."""


@pytest.fixture
def authority(make_system: MakeSystem) -> Iterator[System]:
    with only_authority(make_system("authority")).running() as system:
        yield system


@pytest.fixture
def gateway(authority: System) -> Iterator[Gateway]:
    made = Gateway(authority, "gw-1")
    made.join(made.admit())
    # A worker that a busy machine does not let run is not silent: those that are have tests/scenarios/test_workers.py.
    made.edit("\n[gateway]\n", '\n[gateway]\nsilence = "1m"\n')
    made.edit('expired_after = "1h"', f'expired_after = "{EXPIRED}s"')
    with made.running() as gateway:
        yield gateway


def enrolled(gateway: Gateway, name: str, make_tpm: MakeTpm) -> Node:
    node = gateway.system.add_node(name, make_tpm(name))
    node.enrol()
    gateway.serves(node)
    knows(gateway, node)
    return node


def knows(gateway: Gateway, node: Node) -> None:
    """Wait until the gateway has heard of the node's certificate."""
    wait_until(lambda: asked(node).code == 0, f"{node.name} to be let in")


def asked(node: Node) -> Done:
    """A call, however it ends."""
    return node.system.commands.run("node", "call", "GET", "/version", "--config", str(node.config))


def refused(node: Node, reason: str) -> None:
    """Wait until `node` is refused for this reason."""
    wait_until(lambda: reason in asked(node).err, f"{node.name} to be refused: {reason}")


def everywhere(authority: System, node: Node) -> Any:
    """Revoke `node`, again and again, until every gateway has said that it enforces that; what is told of it then. Who
    revokes waits for a second, which a busy machine may need for itself."""
    told: list[Any] = []

    def is_in_force() -> bool:
        told.append(authority.operate("inventory", "revoke", node.name, "--json").json["gateways"])
        return told[-1]["unacknowledged"] == []

    wait_until(is_in_force, "every gateway to say that it enforces the revocation")
    return told[-1]


def test_a_gateway_enforces_what_its_authority_decides(authority: System, gateway: Gateway, make_tpm: MakeTpm) -> None:
    node = enrolled(gateway, "edge-1", make_tpm)
    denied = node.call("POST", "/v3/kv/put", "--data", "{}", expect=1)
    decision = denied.err.rsplit("explain ", 1)[1].strip()
    explained = gateway.system.run("explain", decision, "--socket", str(gateway.state / "sallyport.sock"))
    assert "route control-plane" in explained.out

    with gateway.connect(node) as client:
        watch = client.watch(KEY)
        authority.operate("inventory", "revoke", "edge-1", "--reason", "key_compromise")
        assert watch.ending() == "cut"
    assert "identity_revoked" in node.call("GET", "/version", expect=1).err
    assert "verifies" in gateway.system.run("audit", "verify", "--config", str(gateway.config)).out


def test_who_revokes_is_told_which_gateways_have_not_followed(
    authority: System, gateway: Gateway, make_tpm: MakeTpm
) -> None:
    nodes = [enrolled(gateway, f"edge-{n}", make_tpm) for n in (1, 2)]
    reach = everywhere(authority, nodes[0])
    assert reach["acknowledged"] == 2, "its own API's facts, and the gateway"
    assert reach["number"] == gateway.shown()["numbers"]["revocations"]

    assert gateway.process is not None
    gateway.process.signal(signal.SIGSTOP)
    try:
        done = authority.operate("inventory", "revoke", nodes[1].name, "--json")
    finally:
        gateway.process.signal(signal.SIGCONT)
    (behind,) = done.json["gateways"]["unacknowledged"]
    assert behind["id"] == f"spiffe://{DOMAIN}/gateway/{gateway.name}"
    assert behind["number"] == reach["number"]
    assert f"not in force yet at {behind['id']}: last heard at" in done.err
    assert "what to do:" in done.err
    *_, told = [record for record in authority.audited() if record["kind"] == "revocation.unacknowledged"]
    assert (told["detail"]["number"], told["detail"]["gateways"]) == (done.json["gateways"]["number"], [behind["id"]])
    refused(nodes[1], "identity_revoked")
    everywhere(authority, nodes[1])


def test_it_serves_on_while_the_authority_is_away_and_forgets_nothing(
    authority: System, gateway: Gateway, make_tpm: MakeTpm
) -> None:
    node, revoked = enrolled(gateway, "edge-1", make_tpm), enrolled(gateway, "edge-2", make_tpm)
    authority.operate("inventory", "revoke", "edge-2")
    refused(revoked, "identity_revoked")
    numbers = gateway.shown()["numbers"]

    # 1. The authority dies, then the gateway: it comes up from what it kept.
    authority.kill()
    gateway.kill()
    gateway.start()
    assert gateway.shown()["numbers"] == numbers
    assert "etcdserver" in node.call("GET", "/version").json
    assert "identity_revoked" in revoked.call("GET", "/version", expect=1).err

    # 2. Facts that are too old serve no route of the class standard.
    gateway.kill()
    gateway.set_trust_time_ahead(EXPIRED)
    gateway.start()
    refused(node, "staleness_exceeded")

    # 3. The authority comes back, and what happened there meanwhile is in force.
    authority.set_trust_time_ahead(EXPIRED)
    authority.start()
    knows(gateway, node)
    authority.operate("inventory", "quarantine", "edge-1")
    refused(node, "identity_quarantined")


def test_a_stolen_gateway_is_shut_out(authority: System, gateway: Gateway) -> None:
    assert gateway.ask_authority("/v1/self").status == 200
    assert gateway.ask_authority("/v1/inventory").reason == "kind_not_allowed"
    authority.operate("inventory", "revoke", "gw-1", "--kind", "gateway", "--reason", "key_compromise")
    for path in ("/v1/self", "/v1/feed"):
        assert gateway.ask_authority(path).reason == "identity_revoked"
    authority.operate("policy", "publish", str(authority.build()))
    authority.enforces(authority.revision)
    assert gateway.shown()["numbers"]["policy"] < authority.revision  # it hears nothing any more


def test_a_token_alone_makes_no_gateway(authority: System) -> None:
    gateway = Gateway(authority, "gw-2")
    authority.operate("inventory", "add", "gw-2", "--kind", "gateway")
    token = authority.folder / "gw-2.token"
    authority.operate("token", "create", "gw-2", "--kind", "gateway", "--output", str(token))
    told = gateway.join(token, expect=1).err
    assert "profile_refused" in told
    assert "names" in told
    authority.operate("inventory", "update", "gw-2", "--kind", "gateway", "--label", "names=localhost")
    assert "gateway/gw-2" in gateway.join(token).out


def test_a_nodes_token_makes_no_gateway(authority: System) -> None:
    gateway = Gateway(authority, "gw-3")
    token = authority.folder / "gw-3.token"
    authority.operate("inventory", "add", "gw-3")
    authority.operate("token", "create", "gw-3", "--output", str(token))
    assert "attestation_required" in gateway.join(token, expect=1).err
    assert not (gateway.state / "identity").exists()


def test_a_restored_backup_brings_no_trust_back(
    authority: System, gateway: Gateway, make_tpm: MakeTpm, tmp_path: Path
) -> None:
    node = enrolled(gateway, "edge-1", make_tpm)
    # 1. A backup, and what happens after it.
    authority.stop()
    shutil.copytree(authority.state, tmp_path / "backup")
    authority.start()
    unused = node.token()
    shutil.copy(unused, tmp_path / "token")
    authority.operate("inventory", "revoke", "edge-1", "--reason", "key_compromise")
    refused(node, "identity_revoked")
    wait_until(lambda: gateway.shown()["numbers"] == authority.numbers(), "the gateway to hear of the certificate too")
    # 2. The authority's disk is lost. The backup is put back and made safe by what the gateway kept.
    authority.kill()
    shutil.rmtree(authority.state)
    shutil.copytree(tmp_path / "backup", authority.state)
    words = ("recover", "--config", str(authority.config), "--facts", str(gateway.state / "facts"))
    assert "2 revocations are put back" in authority.run(*words).out
    assert "0 revocations are put back" in authority.run(*words).out  # again is no harm
    authority.start()
    # 3. The authority and the gateway agree: the node stays out.
    wait_until(lambda: gateway.shown()["numbers"] == authority.numbers(), "the gateway to catch up")
    assert "identity_revoked" in node.call("GET", "/version", expect=1).err
    assert "identity_revoked" in node.renew(expect=1).err
    assert "enrolment_refused" in node.run("enrol", "--token-file", str(tmp_path / "token"), expect=1).err

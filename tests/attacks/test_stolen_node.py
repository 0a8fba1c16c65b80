"""Row "stolen node" (kubeedge#4730, #6227): a revoked node cannot come back: not with its certificate, not by renewal,
not with a token that was minted before, not over a connection or stream that is open, not with a copy of its disk; only
an operator admits it again, and its old certificates stay revoked."""

from __future__ import annotations

import http.client
import shutil

import pytest

from agent.settings import AgentSettings
from tests.support.system import MakeTpm, Node, OpenAnswer, System


class Stolen:
    """A node that the thief took while it ran: everything of it is open, and a token lies about."""

    def __init__(self, system: System, node: Node) -> None:
        self.system, self.node = system, node
        node.enrol()
        self.unused_token = shutil.copy(node.token(), node.folder / "unused-token")
        self.idle, self.renewing, watching = node.connect(), node.connect("api"), node.connect()
        assert self.idle.get("/version").status == 200
        assert self.renewing.get("/v1/self").status == 200
        self.watch: OpenAnswer = watching.watch("c3RvbGVu")
        system.operate("inventory", "revoke", node.name, "--reason", "key_compromise")


@pytest.fixture
def stolen(system: System, make_tpm: MakeTpm) -> Stolen:
    name = f"stolen-{len(system.api.get('/v1/inventory', limit=1000)['items'])}"
    return Stolen(system, system.add_node(name, make_tpm(name)))


def test_its_streams_and_idle_connections_are_cut(stolen: Stolen) -> None:
    assert stolen.watch.ending() == "cut"
    with pytest.raises((http.client.HTTPException, OSError)):
        stolen.idle.get("/version")


def test_its_certificate_is_refused_at_the_gateway_and_at_the_api(stolen: Stolen) -> None:
    with stolen.node.connect() as client:
        assert client.get("/version").reason == "identity_revoked"
    assert stolen.renewing.get("/v1/self").reason == "identity_revoked"


def test_it_cannot_renew(stolen: Stolen) -> None:
    assert "identity_revoked" in stolen.node.renew(expect=1).err


def test_it_cannot_enrol_with_a_token_from_before(stolen: Stolen) -> None:
    words = ("enrol", "--token-file", str(stolen.unused_token))
    told = stolen.node.run(*words, expect=1).err
    assert told.split(":")[0] in {"inventory_state", "token_used", "enrolment_refused"}
    log = [event for event in stolen.system.audited() if event["subject"] == stolen.node.id]
    revoked = [event["kind"] for event in log].index("identity.revoked")
    assert "certificate.issued" not in [event["kind"] for event in log[revoked:]]


def test_no_token_is_minted_for_it(stolen: Stolen) -> None:
    assert "inventory_state" in stolen.system.operate("token", "create", stolen.node.name, expect=1).err


def test_its_tpm_cannot_come_back_under_another_name(stolen: Stolen) -> None:
    other = stolen.system.add_node(f"{stolen.node.name}-b", stolen.node.device)
    assert "ek_taken" in other.enrol(expect=1).err


def test_a_copy_of_its_disk_with_another_tpm_gets_nowhere(system: System, make_tpm: MakeTpm) -> None:
    owner = system.add_node("disk-owner", make_tpm("owner"))
    owner.enrol()
    thief = Node(system, "disk-thief", make_tpm("thief"))
    shutil.copytree(owner.settings.directory, AgentSettings.load(thief.config).directory)
    for words in (("call", "GET", "/version"), ("renew",)):
        assert "tls_key_unusable" in thief.run(*words, expect=1).err


def test_an_operator_admits_it_and_its_old_certificate_stays_revoked(stolen: Stolen) -> None:
    system, node = stolen.system, stolen.node
    old = node.folder / "old"
    shutil.copytree(node.settings.directory, old)
    system.operate("inventory", "admit", node.name)
    node.enrol()
    with node.connect() as client:
        assert client.get("/version").status == 200
    node.write_settings(directory=str(old))
    with node.connect() as client:
        assert client.get("/version").reason == "identity_revoked"
    assert "identity_revoked" in node.renew(expect=1).err

"""Row "open stream outlives permission" (envoy#14504, pomerium#1279, tailscale#859, consul#6454), over a whole system:
etcd's watch, open through the gateway by a node's own key, is cut when what allowed it ends, whatever that was: policy,
grant (expired or deleted), posture, revocation, certificate. It is cut, not ended, for its own reason (no
revocation waits for a deadline), and a new one is refused."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from tests.support.processes import PATIENCE
from tests.support.system import Client, MakeSystem, MakeTpm, Node, System

KEY = "c3RyZWFt"
LIFE = 4.0  # seconds for opening a watch before its permission ends, beside what this machine takes for the rest
GRANT = """
  - id: {id}
    role: {role}
    route: control-plane
    methods: [POST]
    paths: [/v3/watch]
    expires: {expires}
"""
DENY = '  - {{id: ended, route: control-plane, paths: [/v3/watch], names: [{name}], why: "A test ends it."}}\n'


@contextlib.contextmanager
def cut(system: System, reason: str, *clients: Client) -> Iterator[None]:
    """A watch of each client is open while the block runs, and is cut then, for this reason."""
    watches = [client.watch(KEY) for client in clients]
    before = system.ended_for(reason)
    yield
    assert [watch.ending() for watch in watches] == ["cut"] * len(watches)
    assert system.ended_for(reason) == before + len(watches)


@pytest.fixture(scope="module")
def own(make_system: MakeSystem) -> Iterator[System]:
    """A system whose policy these tests may change as they like."""
    with make_system("streams").running() as system:
        yield system


def _node(system: System, make_tpm: MakeTpm, name: str, role: str = "edge-agent") -> Node:
    node = system.add_node(name, make_tpm(name), role=role)
    node.enrol()
    return node


def _seconds(act: Callable[[], object]) -> float:
    """How long this machine takes for it now."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _put(system: System) -> None:
    """An event for who watches, past the gateway."""
    body = json.dumps({"key": KEY, "value": "MQ=="}).encode()
    request = urllib.request.Request(f"{system.control_plane}/v3/kv/put", body)  # noqa: S310  # our own, on loopback
    urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310  # as above


def _refused(node: Node) -> str:
    with node.connect() as client:
        return client.post("/v3/watch", {"create_request": {"key": KEY}}).reason


def test_a_revocation_cuts_it(own: System, make_tpm: MakeTpm) -> None:
    node = _node(own, make_tpm, "revoked")
    with node.connect() as client, cut(own, "cut_by_revocation", client):
        own.operate("inventory", "revoke", node.name)
    assert _refused(node) == "identity_revoked"


def test_the_revocation_of_its_certificate_alone_cuts_it(own: System, make_tpm: MakeTpm) -> None:
    node = _node(own, make_tpm, "serial")
    with node.connect() as client, cut(own, "cut_by_revocation", client):
        own.operate("cert", "revoke", node.serial)
    assert _refused(node) == "identity_revoked"


def test_quarantine_cuts_it(own: System, make_tpm: MakeTpm) -> None:
    node = _node(own, make_tpm, "quarantined")
    with node.connect() as client, cut(own, "cut_by_change", client):
        own.operate("inventory", "quarantine", node.name)
    assert _refused(node) == "identity_quarantined"


def test_a_failed_posture_cuts_it(own: System, make_tpm: MakeTpm) -> None:
    """Two holders of one certificate: the older one asks for renewal, and the clone alarm fails the node's posture."""
    node = _node(own, make_tpm, "failed")
    stolen = node.folder / "stolen"
    shutil.copytree(node.settings.directory, stolen)
    node.renew()
    node.renew()
    with node.connect() as client, cut(own, "cut_by_change", client):
        node.write_settings(directory=str(stolen))
        assert "clone_suspected" in node.renew(expect=1).err
    node.write_settings()
    assert _refused(node) == "posture_failed"


def test_a_role_taken_away_cuts_it(own: System, make_tpm: MakeTpm) -> None:
    node = _node(own, make_tpm, "roleless")
    with node.connect() as client, cut(own, "cut_by_change", client):
        own.operate("inventory", "update", node.name, "--role", "idler")
    assert _refused(node) in {"role_missing", "kind_not_allowed", "no_grant"}


def test_policy_and_a_deleted_grant_cut_theirs_and_no_others(own: System, make_tpm: MakeTpm) -> None:
    deleted = GRANT.format(id="deleted", role="passing", expires="2027-12-31")
    own.add_policy(grants=deleted, roles="  passing: Watches for a while\n")
    own.publish()
    granted, denied = _node(own, make_tpm, "grantless", "passing"), _node(own, make_tpm, "denied")
    bystander = _node(own, make_tpm, "bystander")
    with granted.connect() as first, denied.connect() as second, bystander.connect() as third:
        going_on = third.watch(KEY)
        with cut(own, "cut_by_change", first, second):
            grants, deny = own.workspace / "grants.yaml", DENY.format(name=denied.name)
            text = grants.read_text().replace(deleted, "\n").replace("\ndenies:\n", f"\ndenies:\n{deny}")
            grants.write_text(text)
            own.publish()
        _put(own)
        assert going_on.line()["result"]["events"]
    assert _refused(granted) in {"role_missing", "no_grant"}
    assert _refused(denied) == "deny_override"


def test_a_grant_that_expires_cuts_it(own: System, make_tpm: MakeTpm) -> None:
    node = _node(own, make_tpm, "expiring", "brief")
    own.add_policy(roles="  brief: Watches briefly\n")
    publishing = _seconds(own.publish)
    end = datetime.datetime.fromtimestamp(int(time.time() + LIFE + 3 * publishing), datetime.UTC)
    own.add_policy(grants=GRANT.format(id="brief", role="brief", expires=f"{end:%Y-%m-%dT%H:%M:%SZ}"))
    own.publish()
    with node.connect() as client, cut(own, "cut_by_deadline", client):
        pass  # time alone does it
    assert _refused(node) in {"grant_expired", "role_missing", "no_grant"}


def test_the_end_of_its_certificate_cuts_it(make_system: MakeSystem, make_tpm: MakeTpm) -> None:
    """Trust time is set ahead while the system is off, to shortly before the certificate's end."""
    system = make_system("ending")
    with system.running():
        node = _node(system, make_tpm, "ending")
        system.stop()
        starting = _seconds(system.start)
        system.stop()
        left = LIFE + 3 * starting
        system.set_trust_time_ahead(node.store.identity().issued.not_after - time.time() - left)
        system.start()
        with node.connect() as client, cut(system, "cut_by_deadline", client):
            pass  # time alone does it
        assert _refused(node) in {"certificate_expired", "attestation_expired"}

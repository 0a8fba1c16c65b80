"""The main job from beginning to end, as `make demo` tells it: what is promised to a newcomer, in one test."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.processes import wait_until
from tests.support.system import MakeTpm, Node, System

KEY = "bWFpbi1qb2I="
PUT = json.dumps({"key": KEY, "value": "aGVsbG8="})
WRITE_GRANT = """
  - {id: main-job-write, role: writer, route: control-plane, methods: [POST], paths: [/v3/kv/put], expires: 2027-12-31}
"""


def test_the_main_job(
    tmp_path: Path, commands: CommandServer, tpm_maker: TpmMaker, control_plane: str, make_tpm: MakeTpm
) -> None:
    made = System(tmp_path / "system", control_plane, commands, tpm_maker)
    assert "authority made for fleet.example" in made.initialise().out
    with made.running() as system:
        node = system.add_node("edge-1", make_tpm("edge-1"), site="lab")
        system.operate("inventory", "update", "edge-1", "--role", "edge-agent", "--role", "writer")

        enrolled = node.enrol().json
        assert enrolled["spiffe_id"] == "spiffe://fleet.example/node/edge-1"
        assert (enrolled["attestation"], enrolled["key"]) == ("virtual", "tpm")
        assert "etcdserver" in node.call("GET", "/version").json

        decision = denied_with_reason_and_remedy(node.call("POST", "/v3/kv/put", "--data", PUT, expect=1).err)
        explained_with_near_misses(system, decision)

        running = system.process
        system.add_policy(grants=WRITE_GRANT, roles="  writer: Writes\n")
        bundle = system.build()
        tried_beside_the_one_in_force(system, node, bundle)
        system.operate("policy", "publish", str(bundle))
        system.enforces(2)
        assert "header" in node.call("POST", "/v3/kv/put", "--data", PUT).json
        assert system.process is running

        client = node.connect()
        watch = client.watch(KEY)
        idle = node.connect()
        assert idle.get("/version").status == 200
        revoked = system.operate("inventory", "revoke", "edge-1", "--reason", "key_compromise", "--json").json
        assert len(revoked["revocations"]) == 2  # the identity and its one certificate
        assert watch.ending() == "cut"
        ran_by, last = watch.decision, system.operate("explain", decision, "--json").json
        assert (last["revision"], last["explained_by"]) == (1, 1)  # two revisions later
        ended = system.operate("explain", ran_by, "--json").json
        assert ended["allowed"]
        assert "its stream was cut at" in ended["sentences"][-1]
        cut = system.operate("explain", ended["cut"], "--json").json
        assert (cut["reasons"], cut["ended"]) == (["identity_revoked"], ran_by)
        assert any(text.startswith("revocation ") for text in cut["sentences"])

        assert "identity_revoked" in node.call("GET", "/version", expect=1).err
        assert "identity_revoked" in node.renew(expect=1).err
        refused = system.operate("token", "create", "edge-1", expect=1)
        assert "inventory_state" in refused.err
        assert "what to do" in refused.err

        system.operate("inventory", "admit", "edge-1")
        assert "identity_revoked" in node.call("GET", "/version", expect=1).err  # its old certificate stays revoked
        assert node.enrol().json["spiffe_id"] == node.id
        assert "etcdserver" in node.call("GET", "/version").json
        assert "verifies" in system.run("audit", "verify", "--config", str(system.config)).out


def denied_with_reason_and_remedy(told: str) -> str:
    """Why, what to do, and the decision's ID."""
    first, remedy, explain = told.strip().splitlines()
    assert first == "path_not_granted: the grant does not cover this path"
    assert remedy.strip() == "what to do: widen the grant's paths or use another"
    return explain.strip().removeprefix("sallyport explain ")


def tried_beside_the_one_in_force(system: System, node: Node, bundle: Path) -> None:
    """The candidate would permit what is denied, and is enforced nowhere."""
    begun = system.operate("policy", "shadow", "start", str(bundle), "--json").json
    assert (begun["running"], begun["revision"]) == (True, 2)

    def differs() -> bool:
        node.call("POST", "/v3/kv/put", "--data", PUT, expect=1)
        return bool(system.operate("policy", "shadow", "status", "--json").json.get("different"))

    wait_until(differs, "a difference")
    assert "now_permitted" in system.operate("policy", "shadow", "status").out
    found = system.operate("policy", "shadow", "stop", "--json").json
    assert found["running"] is False
    assert [(each["route"], each["kind"]) for each in found["differences"]] == [("control-plane", "now_permitted")]
    asked = system.operate("explain", found["records"][0]["decision"], "--json").json
    assert asked["reasons"] == ["path_not_granted"]


def explained_with_near_misses(system: System, decision: str) -> None:
    explained = system.operate("explain", decision, "--json").json
    assert explained["decision"] == decision
    assert explained["reasons"] == ["path_not_granted"]
    text = system.operate("explain", decision).out
    for part in (
        "denied  POST /v3/kv/put  on route control-plane",
        "agent-read",
        "it covers /v3/kv/range",
        "what to do",
    ):
        assert part in text

"""`sallyport access` of a draft: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foundation.faults import Fault
from policies.access.cli import app
from tests.support.policy import STARTER

FLEET = [
    {"name": "n1", "roles": ["edge-agent"], "segment": "edge"},
    {"name": "n2", "roles": ["edge-agent"], "segment": "edge", "tier": 3},
    {"name": "n3", "roles": ["edge-agent"], "segment": "edge", "state": "quarantined"},
    {"name": "n4"},
]


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(FLEET))
    return path


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments), "--workspace", str(STARTER)])


def answer(command: str, *arguments: object) -> Any:
    done = run(command, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_who_can_reach(fleet: Path) -> None:
    found = answer("who-can-reach", "models", "--identities", fleet)
    assert [(each["name"], each["refusal"]) for each in found["identities"]] == [
        ("n1", ""),
        ("n3", "identity_quarantined"),
    ]
    assert (found["revision"], found["asked"], found["unasked"]) == (0, 4, 0)
    assert found["identities"][0]["ways"] == [
        {"grant": "agent-models", "until": 1830211200.0, "methods": ["GET"], "paths": ["/models/**"], "through": []}
    ]
    (one,) = found["classes"]
    assert (one["kind"], one["role"], one["tier"]) == ("node", ["edge-agent"], ["1", "2"])
    assert (one["segment"], one["site"]) == (["edge"], ["any"])
    assert (one["attestation"], found["also_reads"]) == (["hardware", "virtual"], ["staleness"])


def test_who_can_reach_on_a_terminal(fleet: Path) -> None:
    text = run("who-can-reach", "models", "--identities", fleet).stdout
    assert "of 4 identities, 2 can reach it" in text
    assert "GET /models/**  by agent-models, until 2027-12-31" in text
    assert "now shut out all the same" in text
    assert "not asked" not in text


def test_what_can_reach(fleet: Path) -> None:
    found = answer("what-can-reach", "n2", "--identities", fleet)
    assert [each["route"] for each in found["routes"]] == ["control-plane"]  # of tier 3: no models
    text = run("what-can-reach", "n9", "--role", "edge-agent", "--segment", "edge").stdout
    assert "control-plane\n    GET /health  /version  by agent-health" in text
    assert "POST /v3/kv/range  /v3/watch  by agent-read" in text
    assert "no route" in run("what-can-reach", "n4", "--identities", fleet).stdout


def test_why(fleet: Path) -> None:
    found = answer("why", "n2", "models", "--identities", fleet)
    assert (found["allowed"], found["reasons"]) == (False, ["tier_insufficient"])
    found = answer("why", "n1", "control-plane", "--path", "/v3/kv/put", "--method", "POST", "--identities", fleet)
    assert (found["reasons"], found["near_misses"][0]["grant"]) == (["path_not_granted"], "agent-read")
    text = run("why", "o", "control-plane", "--kind", "operator", "--role", "fleet-operator").stdout
    assert "allowed" in text
    assert "by grant operator-control-plane" in text
    assert "the draft" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("who-can-reach", "nowhere"), "not_found"),
        (("why", "n1", "models", "--path", "/models/*"), "message_malformed"),
        (("why", "n1", "models", "--path", "/models/../x"), "message_malformed"),
        (("why", "n1", "models", "--method", "GRAB"), "message_malformed"),
        (("what-can-reach", "n1", "--identities", STARTER / "missing.json"), "file_unreadable"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, Fault)
    assert done.exception.reason.code == reason


def test_a_workspace_with_faults_tells_all_of_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["who-can-reach", "r", "--workspace", str(tmp_path)])
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 3

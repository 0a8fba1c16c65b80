"""The commands' promises: every listing has --json that parses; exit codes 0, 1 and 2; errors name field and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sallyport
from tests.support.commands import fresh
from tests.support.system import MakeSystem, MakeTpm, Node, System


@pytest.fixture(scope="module")
def node(system: System) -> str:
    """A node that is expected, with a token that nobody used."""
    system.operate("inventory", "add", "listed", "--tier", "2", "--role", "edge-agent", "--label", "class=edge")
    system.operate("token", "create", "listed", "--output", str(system.folder / "unused-token"))
    return "listed"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("inventory", "list"), "listed"),
        (("inventory", "show", "listed"), "listed"),
        (("inventory", "list", "--state", "expected", "--tier", "2"), "listed"),
        (("token", "list"), "spiffe://fleet.example/node/listed"),
        (("cert", "list"), "spiffe://fleet.example/operator/admin"),
    ],
)
@pytest.mark.usefixtures("node")
def test_listings_answer_in_json_and_for_people(system: System, words: tuple[str, ...], name: str) -> None:
    found = system.operate(*words, "--json").json
    rows = found if isinstance(found, list) else [found]
    assert any(name in row.values() for row in rows)
    assert name in system.operate(*words).out.replace("\n", "")


def test_a_certificate_is_shown_in_json_and_as_pem(system: System) -> None:
    serial = next(iter(system.certificates()))
    assert system.operate("cert", "show", serial, "--json").json["serial"] == serial
    assert system.operate("cert", "show", serial, "--pem").out.startswith("-----BEGIN CERTIFICATE-----")


def test_who_can_reach_what_is_told_of_what_is_enforced(system: System, node: str) -> None:
    found = system.operate("access", "who-can-reach", "control-plane", "--json").json
    assert (found["revision"], found["unasked"]) == (system.revision or 1, 0)
    assert node not in {each["name"] for each in found["identities"]}  # it never attested
    assert "by agent-health" not in system.operate("access", "what-can-reach", node).out
    assert "agent-health" in system.operate("access", "who-can-reach", "control-plane").out  # its role could
    why = system.operate("access", "why", node, "control-plane", "--path", "/version", "--json").json
    assert (why["allowed"], why["reasons"]) == (False, ["identity_unknown"])
    assert "policy alone answers: posture_insufficient" in why["sentences"]


def test_commands_on_files_answer_in_json(system: System, make_tpm: MakeTpm) -> None:
    config = ("--config", str(system.config))
    assert system.run("policy", "check", str(system.workspace), "--json").json["ok"]
    assert system.run("audit", "verify", *config, "--json").json
    assert {finding["check"] for finding in system.run("doctor", *config, "--json").json} >= {"settings", "opa", "disk"}
    enrolled = system.add_node("status", make_tpm("status"))
    enrolled.enrol()
    assert enrolled.run("status", "--json").json["spiffe_id"] == enrolled.id
    assert enrolled.run("status", "--test-key", "--json").json["signatures_by_tpm"] == 2  # both sides' of a handshake


@pytest.mark.parametrize("command", list(sallyport.COMMANDS))
def test_every_command_has_help(system: System, command: str) -> None:
    assert "Usage: sallyport" in system.run(command, "--help").out


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("inventory", "nonsense"),
        ("inventory", "show"),
        ("inventory", "list", "--nonsense"),
        ("inventory", "add", "x", "--tier", "9"),
        ("inventory", "revoke", "x", "--reason", "bad mood"),
        ("inventory", "add", "x", "--label", "no-equals-sign"),
        ("token", "create"),
        ("policy", "build"),
        ("node", "call", "GET"),
        ("init",),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(system: System, words: tuple[str, ...]) -> None:
    done = system.run(*words, expect=2)
    assert "Usage: sallyport" in done.err
    assert "Error" in done.err


@pytest.mark.parametrize(
    ("words", "reason", "named"),
    [
        (("inventory", "show", "nobody"), "not_found", "name"),
        (("inventory", "add", "UPPER"), "message_malformed", "name"),
        (("inventory", "revoke", "nobody"), "not_found", "name"),
        (("token", "create", "listed", "--ttl", "soon"), "message_malformed", "ttl"),
        (("cert", "show", "abcdef"), "not_found", "serial"),
        (("explain", "d-nothing"), "not_found", ""),
        (("inventory", "import", "/nowhere.json"), "file_unreadable", "/nowhere.json"),
    ],
)
@pytest.mark.usefixtures("node")
def test_what_is_refused_ends_with_1_and_says_what_to_do(
    system: System, words: tuple[str, ...], reason: str, named: str
) -> None:
    told = system.operate(*words, expect=1).err
    assert reason in told
    assert named in told
    assert "what to do: " in told
    assert "Traceback" not in told


def test_an_api_that_is_not_there_is_told_as_such(system: System, tmp_path: Path) -> None:
    told = system.run("inventory", "list", "--socket", str(tmp_path / "none.sock"), expect=1).err
    assert "server_unreachable" in told
    assert "what to do: " in told


def test_an_operator_reaches_the_api_over_tls(system: System) -> None:
    pair = system.operator
    words = ["--server", f"localhost:{system.ports['api']}", "--cert", str(pair.certificate), "--key", str(pair.key)]
    words += ["--ca", str(system.authority / "root.pem")]
    assert system.run("inventory", "list", "--json", *words).json


def test_a_node_without_identity_is_told_to_enrol(system: System, make_tpm: MakeTpm) -> None:
    told = Node(system, "unenrolled", make_tpm("unenrolled")).call("GET", "/version", expect=1).err
    assert "not_enrolled" in told
    assert "sallyport node enrol" in told


def test_import_takes_all_or_none(system: System, tmp_path: Path) -> None:
    good = [{"name": f"imported-{number}", "tier": 2} for number in range(3)]
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps([*good, {"name": "imported-4", "tier": 7}]))
    told = system.operate("inventory", "import", str(path), expect=1).err
    assert "tier" in told
    assert "entries[3]" in told
    assert "imported-0" not in system.operate("inventory", "list", "--json").out
    path.write_text(json.dumps(good))
    system.operate("inventory", "import", str(path))
    assert "imported-2" in system.operate("inventory", "list", "--json").out


def test_init_does_not_touch_an_authority_that_exists(make_system: MakeSystem) -> None:
    idle = make_system("twice")
    before = (idle.authority / "root.pem").read_bytes()
    words = ("init", "--trust-domain", "other.example", "--directory", str(idle.state))
    assert "conflict" in idle.run(*words, expect=1).err
    assert (idle.authority / "root.pem").read_bytes() == before


def test_the_command_as_users_start_it(system: System) -> None:
    assert fresh("--help").expect(0).out.startswith("Usage: sallyport")
    assert "not_found" in fresh("explain", "d-x", "--socket", str(system.state / "sallyport.sock")).expect(1).err
    fresh("nonsense").expect(2)

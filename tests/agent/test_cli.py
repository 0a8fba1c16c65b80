"""`sallyport node`, as people and scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.cli import app
from foundation.reasons import Reason
from foundation.wire.health import HealthReport, Tunnels
from tests.support.authority import SmallAuthority
from tests.support.swtpm import EmulatedTpm, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


def token_file(tmp_path: Path, authority: SmallAuthority) -> Path:
    path = tmp_path / "token"
    path.write_text(authority.token.encode() + "\n")
    path.chmod(0o600)
    return path


def node(*words: object, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


def test_the_life_of_a_node(tmp_path: Path, swtpm: EmulatedTpm, authority: SmallAuthority) -> None:
    config = tmp_path / "agent.toml"
    with authority.serving() as enrolment, authority.serving(mutual=True) as api:
        config.write_text(
            f'[agent]\ndirectory = "{tmp_path}/node"\ntcti = "{swtpm.tcti}"\nevent_log = "{swtpm.event_log}"\n'
            f'authority = "{enrolment}"\nrenewal = "{api}"\n'
        )
        token = token_file(tmp_path, authority)
        enrolled = node("enrol", "--config", config, "--token-file", token, "--node", "edge-9", "--json")
        assert enrolled.exit_code == 0, enrolled.output
        facts = json.loads(enrolled.stdout)
        assert facts["spiffe_id"] == "spiffe://test/node/edge-9"
        assert (facts["key"], facts["attestation"]) == ("tpm", "virtual")

        renewed = json.loads(node("renew", "--config", config, "--json").stdout)
        assert renewed["renewed"] is True
        not_due = json.loads(node("renew", "--config", config, "--if-due", "--json").stdout)
        assert not_due["renewed"] is False

        status = json.loads(node("status", "--config", config, "--test-key", "--json").stdout)
        assert status["signatures_by_tpm"] == 2
        assert status["answer_outstanding"] is False
        assert "spiffe://test/node/edge-9" in node("status", "--config", config).stdout


def test_the_token_comes_by_standard_input_and_a_software_key_where_asked(
    tmp_path: Path, authority: SmallAuthority
) -> None:
    with authority.serving() as enrolment:
        done = node(
            *("enrol", "--token-file", "-", "--authority", enrolment, "--directory", tmp_path / "node"),
            *("--node", "edge-1", "--key", "software", "--json"),
            text=authority.token.encode(),
        )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["key"] == "software"


def test_a_refusal_gives_reason_and_remedy(tmp_path: Path, authority: SmallAuthority) -> None:
    authority.refuse = Reason.ENROLMENT_REFUSED
    with authority.serving() as enrolment:
        done = node(
            *("enrol", "--token-file", token_file(tmp_path, authority), "--authority", enrolment),
            *("--directory", tmp_path / "node", "--key", "software"),
        )
    assert done.exit_code == 1
    assert "enrolment_refused" in done.stderr
    assert "as the test asked" in done.stderr
    assert Reason.ENROLMENT_REFUSED.remedy in done.stderr.replace("\n", " ")
    assert authority.token.encode() not in done.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status",), "not_enrolled"),
        (("renew",), "not_enrolled"),
        (("call", "GET", "/"), "setting_invalid"),
        (("call", "GET", "/", "--gateway", "127.0.0.1:1"), "not_enrolled"),
        (("call", "GET", "/", "--gateway", "nowhere"), "setting_invalid"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, words: tuple[str, ...], code: str) -> None:
    done = node(*words, "--directory", tmp_path / "node")
    assert done.exit_code == 1
    assert code in done.stderr


@pytest.mark.parametrize(
    ("text", "mode", "code"), [("sp1_x", 0o600, "token_malformed"), ("", 0o644, "file_mode_unsafe")]
)
def test_a_bad_token_file_is_named(tmp_path: Path, text: str, mode: int, code: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    done = node("enrol", "--token-file", path, "--directory", tmp_path / "node", "--authority", "a:1")
    assert done.exit_code == 1
    assert code in done.stderr


def test_a_wrong_command_line_exits_with_2() -> None:
    assert node("enrol").exit_code == 2
    assert node("enrol", "--token", "sp1_secret").exit_code == 2


def test_health_says_how_the_machine_is_and_what_was_reported(tmp_path: Path) -> None:
    fresh = json.loads(node("health", "--directory", tmp_path, "--json").stdout)
    assert fresh["reported"] is None
    assert fresh["now"]["memory"]["total"] > 0
    assert "never: does the agent run?" in node("health", "--directory", tmp_path).stdout
    report = HealthReport(at=time.time() - 5, interval=60, tunnels=Tunnels(1, 2))
    (tmp_path / "health.json").write_bytes(report.encode())
    known = json.loads(node("health", "--directory", tmp_path, "--json").stdout)
    assert known["reported"] == report.document()
    assert known["ailments"] == ["tunnels_missing"]
    assert "tunnels_missing" in node("health", "--directory", tmp_path).stdout


def test_help_costs_no_cryptography() -> None:
    program = "import sys, agent.cli; sys.exit(any(m.startswith(('cryptography', 'rich')) for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

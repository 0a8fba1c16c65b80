"""`sallyport audit`: its answers and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from foundation.audit.cli import app
from foundation.audit.log import MerkleAuditLog
from foundation.audit.segments import segment_paths
from foundation.audit.settings import AuditSettings
from foundation.faults import Fault
from foundation.ports import AuditEvent
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock

Run = Callable[..., Result]


@pytest.fixture
async def settings(tmp_path: Path) -> AuditSettings:
    made = AuditSettings(directory=tmp_path / "audit")
    MerkleAuditLog.create(made, ManualClock())
    await grow(made, 3)
    return made


async def grow(settings: AuditSettings, count: int, actor: str = "system") -> None:
    log = await MerkleAuditLog.open(settings, ManualClock())
    for n in range(count):
        await log.append(AuditEvent("node.enrolled", actor, f"n{n}"))
    await log.close()


@pytest.fixture
def run(settings: AuditSettings) -> Run:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--directory", str(settings.directory)])

    return call


def test_verify_says_so(run: Run) -> None:
    result = run("verify")
    assert (result.exit_code, "3 records" in result.stdout) == (0, True)
    answer = json.loads(run("verify", "--json").stdout)
    assert (answer["ok"], answer["size"], answer["head"]["size"]) == (True, 3, 3)


def test_tampering_ends_with_1(run: Run, settings: AuditSettings) -> None:
    path = segment_paths(settings.directory)[0]
    path.write_bytes(path.read_bytes().replace(b"n1", b"n9"))
    assert run("verify").exit_code == 1
    result = run("verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["size"]) == (1, 1)
    exported = run("export")
    assert isinstance(exported.exception, Fault)
    assert exported.exception.reason is Reason.AUDIT_TAMPERED


async def test_an_exported_head_proves_later(run: Run, settings: AuditSettings, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    assert run("export", "--head", "--output", str(head)).exit_code == 0
    await grow(settings, 4)
    assert run("verify", "--since", str(head)).exit_code == 0
    for path in segment_paths(settings.directory):
        path.unlink()
    (settings.directory / "head.json").unlink()
    MerkleAuditLog.create(settings, ManualClock())
    await grow(settings, 9, actor="somebody else")
    assert run("verify").exit_code == 0
    assert run("verify", "--since", str(head)).exit_code == 1


async def test_an_export_is_verified_by_itself(run: Run, settings: AuditSettings, tmp_path: Path) -> None:
    first, second = tmp_path / "first.ndjson", tmp_path / "second.ndjson"
    assert run("export", "--output", str(first)).exit_code == 0
    await grow(settings, 4)
    assert run("export", "--output", str(second), "--since", str(first)).exit_code == 0
    assert run("verify", str(second), "--since", str(first)).exit_code == 0
    second.write_bytes(second.read_bytes().replace(b"n1", b"n9"))
    assert run("verify", str(second)).exit_code == 1


def test_settings_name_the_folder(settings: AuditSettings, tmp_path: Path) -> None:
    config = tmp_path / "sallyport.toml"
    config.write_text(f'[audit]\ndirectory = "{settings.directory}"\n[other]\nx = 1\n')
    assert CliRunner().invoke(app, ["verify", "--config", str(config)]).exit_code == 0
    config.write_text('[audit]\nfolder = "x"\n')
    result = CliRunner().invoke(app, ["verify", "--config", str(config)])
    assert isinstance(result.exception, Fault)
    assert result.exception.reason is Reason.SETTING_UNKNOWN


def test_a_wrong_command_line_ends_with_2(run: Run) -> None:
    assert run("verify", "--nonsense").exit_code == 2
    assert run("export", "--first", "-1").exit_code == 2


@pytest.mark.parametrize("arguments", [["--public-key", "missing.pem"], ["--since", "missing.json"]])
def test_what_cannot_be_read_is_a_fault(run: Run, arguments: list[str]) -> None:
    result = run("verify", *arguments)
    assert isinstance(result.exception, Fault)
    assert result.exception.reason is Reason.FILE_UNREADABLE

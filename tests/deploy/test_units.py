"""The systemd units, held by systemd's own tools: what it does not understand, and what they leave open."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "deploy/systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".service", ".timer"))
SERVICES = [name for name in UNITS if name.endswith(".service")]
_PROGRAM = re.compile(r"/opt/sallyport/bin/\S+")
MOST_EXPOSED = {"sallyport-agent.service": 2.2, "sallyport-node-renew.service": 1.9}
OTHERS = 1.4


def findings(folder: Path, name: str, text: str) -> str:
    """What `systemd-analyze verify` says of a unit, whose program stands for one that is there."""
    for other in UNITS:  # a timer is nothing without its service
        (folder / other).write_text(_PROGRAM.sub("/bin/true", (FOLDER / other).read_text()))
    (folder / name).write_text(_PROGRAM.sub("/bin/true", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(folder / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if name in line]
    return "\n".join(said) or (done.stderr if done.returncode else "")


def exposure(folder: Path, name: str, text: str) -> float:
    path = folder / name
    path.write_text(text)
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    return float(found[1])


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing(tmp_path: Path, name: str) -> None:
    assert findings(tmp_path, name, (FOLDER / name).read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("WatchdogSec=60s", "WatchdogSec=soon"),
        ("WatchdogSec=60s", "WatchdogSecs=60s"),
        ("Type=notify", "Type=notifying"),
        ("SystemCallFilter=capset", "SystemCallFilter=capsett"),
        ("ExecStart=/opt/sallyport/bin/sallyport", "ExecStart=/nowhere/sallyport"),
        ("[Service]", "[Servce]"),
    ],
)
def test_a_bad_unit_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    name = "sallyport-agent.service"
    text = (FOLDER / name).read_text()
    assert right in text
    assert findings(tmp_path, name, text.replace(right, wrong, 1)) != ""


@pytest.mark.parametrize("name", SERVICES)
def test_services_leave_little_open(tmp_path: Path, name: str) -> None:
    assert exposure(tmp_path, name, (FOLDER / name).read_text()) <= MOST_EXPOSED.get(name, OTHERS)


@pytest.mark.parametrize("lost", ["NoNewPrivileges=yes", "ProtectSystem=strict", "SystemCallFilter=@system-service"])
def test_what_is_left_open_is_measured(tmp_path: Path, lost: str) -> None:
    name = "sallyport-agent.service"
    text = (FOLDER / name).read_text()
    assert lost in text
    assert exposure(tmp_path, name, text.replace(lost, "")) > exposure(tmp_path, name, text)


def test_the_agent_may_write_its_table_and_ask_its_tpm_and_no_more() -> None:
    agent = settings("sallyport-agent.service")
    assert agent["CapabilityBoundingSet"] == agent["AmbientCapabilities"] == ["CAP_NET_ADMIN"]
    assert agent["DevicePolicy"] == ["closed"]
    assert agent["DeviceAllow"] == ["/dev/tpmrm0 rw"]
    assert agent["NoNewPrivileges"] == ["yes"]
    assert agent["ProtectSystem"] == ["strict"]
    assert (agent["User"], agent["Type"]) == (["sallyport-agent"], ["notify"])


def test_every_command_of_a_unit_is_one_that_there_is() -> None:
    from sallyport import COMMANDS

    words = [line.split() for name in SERVICES for line in settings(name)["ExecStart"]]
    assert all(command[0] == "/opt/sallyport/bin/sallyport" for command in words)
    assert {command[1] for command in words} - {"agent"} <= set(COMMANDS)

"""`sallyport node firewall`, in a network namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.firewall.drift import differences
from agent.firewall.ruleset import ruleset
from agent.firewall.wall import Wall, parsed
from tests.support.netns.namespaces import Namespace
from tests.support.processes import ROOT

WALL = Wall(parsed(["10.77.0.0/16", "fd77::/48"]), parsed(["10.77.0.1", "10.77.0.2"]), parsed(["10.77.0.53"]))


class Machine:
    """A namespace, and a node's settings file."""

    def __init__(self, folder: Path) -> None:
        self.space = Namespace("machine")
        self.config, self.folder = folder / "agent.toml", folder / "node"
        self.config.write_text(
            f'[agent]\ndirectory = "{self.folder}"\ngateway = "10.77.0.1:8443"\nauthority = "10.77.0.2:8444"\n'
            'renewal = "10.77.0.2:8445"\n[agent.firewall]\nallow = ["10.77.0.53"]\n'
        )

    def firewall(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sallyport", "node", "firewall", *words, "--config", str(self.config)]
        with self.space.inside():
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.firewall("status", "--json").stdout)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.space.close()


NETWORKS = ("--network", "10.77.0.0/16", "--network", "fd77::/48")


def test_it_is_printed_set_shown_and_removed(machine: Machine) -> None:
    printed = machine.firewall("--dry-run", *NETWORKS)
    assert printed.returncode == 0, printed.stderr
    assert machine.space.run("nft", "list", "ruleset") == ""
    machine.space.run("nft", "-f", "-", text=printed.stdout)
    listed = json.loads(machine.space.run("nft", "-j", "list", "table", "inet", "sallyport"))["nftables"]
    assert differences(ruleset(WALL), listed) == ()
    machine.space.run("nft", "flush", "ruleset")

    assert machine.status()["standing"] == "off"
    assert machine.firewall("apply", *NETWORKS).stdout == "set: the table is missing\n"
    assert machine.firewall("apply").stdout == "it was as it should be\n"
    found = machine.status()
    assert (found["standing"], found["nodes"]) == ("in_force", ["10.77.0.0/16", "fd77::/48"])
    assert {"chain": "input", "rule": "from a node", "packets": 0, "bytes": 0} in found["rules"]  # type: ignore[operator]
    assert machine.firewall("--dry-run").stdout == printed.stdout

    machine.space.run("nft", "flush", "chain", "inet", "sallyport", "input")
    drifted = machine.firewall("status")
    assert (drifted.returncode, drifted.stdout.splitlines()[0]) == (1, "drifted")
    assert "chain input has 0 rules" in drifted.stdout
    assert machine.firewall("apply").returncode == 0
    assert machine.status()["standing"] == "in_force"

    assert machine.firewall("remove").stdout == "removed\n"
    assert machine.status()["standing"] == "off"
    assert machine.space.run("nft", "list", "ruleset") == ""


def test_without_networks_it_says_where_they_come_from(machine: Machine) -> None:
    done = machine.firewall("apply")
    assert (done.returncode, machine.space.run("nft", "list", "ruleset")) == (1, "")
    assert "firewall_network" in done.stderr
    assert "run the agent, or name them" in done.stderr


def test_a_wrong_network_or_setting_is_named(machine: Machine) -> None:
    assert "'10.0.0.1/8; flush' is no network" in machine.firewall("apply", "--network", "10.0.0.1/8; flush").stderr
    machine.config.write_text("[agent.firewall]\nallowed = []\n")
    assert "setting_unknown (agent.firewall): unknown field 'allowed'" in machine.firewall("--dry-run").stderr


def test_alone_it_shows_its_commands(machine: Machine) -> None:
    done = machine.firewall()
    assert done.returncode == 2
    assert "--dry-run" in done.stdout

"""A real agent under a service manager's eyes: it keeps a service, reports its health, and says when it is not well."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import PATIENCE, crowding, wait_until
from tests.support.running_agent import RunningAgent
from tests.support.system import MakeTpm, System

SERVICE = """
[agent.health]
interval = "1s"
[[agent.service]]
name = "counter"
command = ["/bin/sh", "-c", "echo $$ >> {folder}/pids; exec sleep 1000"]
version = "{folder}/version"
restart_least = "100ms"
"""


class Manager:
    """What stands for systemd: the socket that units notify."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def wait(self, wanted: str) -> None:
        self._socket.settimeout(PATIENCE * crowding())
        while wanted not in self._socket.recv(1000).decode().split("\n"):
            pass

    def is_silent(self, wanted: str, seconds: float) -> bool:
        """Whether nothing of it comes for so long, once what waited was read."""
        self._socket.settimeout(0)
        try:
            while self._socket.recv(1000):
                pass
        except BlockingIOError:
            self._socket.settimeout(seconds)
        try:
            while wanted not in self._socket.recv(1000).decode():
                pass
        except TimeoutError:
            return True
        return False


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    return manager


@pytest.fixture
def agent(system: System, make_tpm: MakeTpm, tmp_path: Path, manager: Manager) -> Iterator[RunningAgent]:
    (tmp_path / "version").write_text("4.5.6\n")
    node = system.add_node("reporter", make_tpm("reporter"))
    node.enrol()
    agent = RunningAgent(node, more=SERVICE.format(folder=tmp_path))
    with agent.running():
        yield agent


def shown(system: System) -> dict[str, Any]:
    return dict(json.loads(system.operate("inventory", "health", "reporter", "--json").out))


def until_shown(system: System, is_so: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """What was shown when it was so: what is shown a moment later may be another report."""
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        seen.append(shown(system))
        return is_so(seen[-1])

    wait_until(look, what)
    return seen[-1]


def is_whole(found: dict[str, Any]) -> bool:
    reported = found["reported"]
    return "clock_skew" in reported and reported["tunnels"] == {"connected": 1, "wanted": 1}


def test_a_node_keeps_its_service_reports_and_is_missed(
    system: System, agent: RunningAgent, manager: Manager, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    # It tells that it is ready, and then again and again that it is well.
    manager.wait("READY=1")
    manager.wait("WATCHDOG=1")
    # What it reports is shown, beside the inventory and not in it.
    found = until_shown(system, is_whole, "a report that follows another")
    reported = found["reported"]
    assert reported["services"][0]["phase"] == "running"
    assert reported["versions"]["service/counter"] == "4.5.6"
    assert abs(reported["clock_skew"]) < 2
    assert json.loads(system.operate("inventory", "show", "reporter", "--json").out)["versions"] == {}
    # Its service is killed, and comes back.
    (first,) = map(int, pids.read_text().split())
    os.kill(first, signal.SIGKILL)
    again = until_shown(system, lambda each: each["reported"]["services"][0]["restarts"] == 1, "a restart")
    assert again["reported"]["services"][0]["last_exit"] == "killed by SIGKILL"
    second = int(pids.read_text().split()[-1])
    # Its loop stands still, and the service manager hears nothing.
    agent.process.signal(signal.SIGSTOP)  # type: ignore[union-attr]
    assert manager.is_silent("WATCHDOG=1", 1.0)
    # Nobody hears of the node, and it is shown as missing.
    until_shown(system, lambda each: each["standing"] == "silent", "silence")
    assert 'sallyport_nodes{standing="silent"}' in system.page("/metrics", bytes.decode)[1]
    agent.process.signal(signal.SIGCONT)  # type: ignore[union-attr]
    manager.wait("WATCHDOG=1")
    until_shown(system, lambda each: each["standing"] != "silent", "a report again")
    # It stops, and its service with it.
    agent.stop()
    manager.wait("STOPPING=1")
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)

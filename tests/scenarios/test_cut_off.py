"""A node whose authority and gateway are killed: it decides for its own programs until its bundle's bound, then for
nobody, and comes back by itself with a whole record. Real processes, the agent's keys in a TPM."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.emulated_tpm import manufacture
from deploy.demo.tpm_maker import TpmMaker
from tests.support.processes import wait_until
from tests.support.running_agent import RunningAgent
from tests.support.system import MakeSystem, System

ROUTES = """
  - {name: local, host: local.test, upstreams: ['http://127.0.0.1:9'], kinds: [node]}
  - {name: strict, host: strict.test, upstreams: ['http://127.0.0.1:9'], kinds: [node], class: critical}
"""
GRANTS = """
  - {id: local, role: edge-agent, route: local, methods: [GET], paths: [/**], expires: 2027-12-31}
  - {id: strict, role: edge-agent, route: strict, methods: [GET], paths: [/**], expires: 2027-12-31}
"""
TERMS = '\n[authority.bundle]\nrefresh = "1s"\nstale_after = "10s"\nexpired_after = "16s"\n'


@dataclass
class CutOff:
    system: System
    agent: RunningAgent
    socket: Path
    asked: list[str] = field(default_factory=list)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Ask slowly: each question leaves a record, and the authority keeps the newest thousands alone."""
        wait_until(condition, what, every=0.05)

    def ask(self, route: str) -> dict[str, Any]:
        """What a program is answered."""
        connection = http.client.HTTPConnection("node")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(self.socket))
        try:
            connection.request("POST", "/v1/decide", json.dumps({"route": route, "method": "GET", "path": "/x"}))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        self.asked.append(answer["decision"])
        return answer

    def reasons(self, route: str) -> list[str]:
        return list(self.ask(route)["reasons"])

    def delivered(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.system.operate("inventory", "records", "a", "--json").json
        return found

    def decisions(self) -> list[str]:
        return [each["body"]["id"] for each in self.delivered() if each["kind"] == "decision"]


@pytest.fixture
def cut_off(make_system: MakeSystem, tmp_path: Path, tpm_maker: TpmMaker) -> Iterator[CutOff]:
    system = make_system("cut-off")
    system.config.write_text(system.config.read_text() + TERMS)
    path = tmp_path / "decide.sock"
    more = f'[agent.outbox]\nevery = "1s"\n[agent.local]\nsocket = "{path}"\n[agent.local.roles]\n0 = ["edge-agent"]\n'
    with manufacture(tmp_path / "tpm", tpm_maker) as tpm, system.running():
        system.add_policy(ROUTES, GRANTS)
        system.publish()
        node = system.add_node("a", tpm)
        node.enrol()
        agent = RunningAgent(node, more=more)
        with agent.running():
            yield CutOff(system, agent, path)


def test_a_node_goes_on_alone_until_its_bound_and_comes_back(cut_off: CutOff) -> None:
    cut_off.wait_until(lambda: cut_off.reasons("local") == ["granted"], "a local decision")
    cut_off.wait_until(lambda: cut_off.reasons("strict") == ["granted"], "the same while the bundle is fresh")

    cut_off.system.kill()
    assert cut_off.reasons("local") == ["granted"]
    cut_off.wait_until(lambda: cut_off.ask("local")["staleness"] == "stale", "the bundle to be stale")
    denied = cut_off.ask("strict")
    assert denied["reasons"] == ["staleness_exceeded"]

    # The agent is killed meanwhile: what it decided by, and what it noted, is on disk.
    cut_off.agent.kill()
    cut_off.agent.launch()
    cut_off.wait_until(lambda: answers(cut_off), "local decisions again")
    cut_off.wait_until(lambda: cut_off.reasons("local") == ["staleness_exceeded"], "the bound to pass")

    cut_off.system.start()
    cut_off.wait_until(lambda: cut_off.reasons("strict") == ["granted"], "a fresh bundle")
    asked = list(cut_off.asked)
    cut_off.wait_until(lambda: asked[-1] in cut_off.decisions(), "the records to be delivered")
    assert cut_off.decisions()[: len(asked)] == asked
    gaps = [each["body"] for each in cut_off.delivered() if each["kind"] == "gap"]
    assert [body.get("unclean") for body in gaps] == [True]  # the kill is told, and nothing was dropped
    explained(cut_off, denied)


def explained(cut_off: CutOff, denied: dict[str, Any]) -> None:
    """What the node denied by itself is explained at the authority, as its own word."""
    node, found = cut_off.agent.node.id, cut_off.system.operate("explain", denied["decision"], "--json").json
    assert (found["node"], found["staleness"], found["revision"]) == (node, "stale", denied["revision"])
    assert (found["reasons"], found["explained_by"]) == (["staleness_exceeded"], denied["revision"])
    assert "the facts that decided were stale; the route takes fresh" in found["sentences"]
    assert "grant strict would allow it but for that" in found["sentences"]
    text = cut_off.system.operate("explain", denied["decision"]).out
    assert f"{node} decided this itself, for its own program of the user 0" in text
    assert "no gateway decided it" in text


def answers(cut_off: CutOff) -> bool:
    try:
        return cut_off.ask("local")["staleness"] != ""
    except OSError:
        return False

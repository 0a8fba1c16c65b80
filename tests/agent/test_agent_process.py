"""`sallyport agent` as people and service managers use it: a process, its signals, its exit codes, what it says."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.store import NodeStore
from deploy.demo.free_ports import free_ports
from tests.fakes.gateway import FakeGateway
from tests.support.certificates import SmallAuthority
from tests.support.processes import Running
from tests.support.tunnels import identity_of

AGENT = (sys.executable, "-m", "sallyport", "agent")
FAR = 10**10


class Machine:
    """A node's files, and the agent that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.authority = SmallAuthority(folder)
        self.gateway = FakeGateway(self.authority)
        self.config = folder / "agent.toml"
        self.folder = folder
        self.port = free_ports(1)[0]
        self.process: Running | None = None

    def write(self, *lines: str) -> None:
        gateway = self.gateway.address if self.gateway.address.port else "gateway.example:8443"
        head = [
            "[agent]",
            f'directory = "{self.folder}/node"',
            'attestation = "none"',
            'tcti = "none:"',
            'drain = "5s"',
        ]
        head += [f'control = "{self.folder}/agent.sock"', f'gateways = ["{gateway}"]']
        self.config.write_text("\n".join([*head, "[agent.firewall]", "enabled = false", *lines, ""]))

    def port_to(self, route: str) -> tuple[str, ...]:
        return ("[[agent.port]]", f'listen = "127.0.0.1:{self.port}"', f'route = "{route}"', 'target = "edge-b"')

    def start(self) -> Running:
        NodeStore(self.folder / "node").save(identity_of(self.authority, now=FAR))
        self.process = Running([*AGENT, "run", "--config", str(self.config)], self.folder / "agent.log")
        return self.process

    async def status(self, *words: str) -> str:
        command = await asyncio.create_subprocess_exec(
            *AGENT, "status", "--config", str(self.config), *words, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await command.communicate()
        assert command.returncode == 0
        return out.decode()

    async def log_says(self, words: str) -> None:
        assert self.process is not None
        while words not in self.process.told():
            assert self.process.process.poll() is None, self.process.told()
            await asyncio.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    if machine.process is not None and machine.process.process.poll() is None:
        machine.process.kill()


async def said(machine: Machine, word: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the port, over which `word` came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", machine.port)
    writer.write(word)
    assert await reader.read(len(word)) == word
    return reader, writer


async def test_it_runs_is_asked_reloads_and_ends(machine: Machine) -> None:
    async with machine.gateway.listening(), asyncio.timeout(60):
        machine.write(*machine.port_to("db"))
        process = machine.start()
        await machine.gateway.tunnel()
        await machine.log_says("is up")
        reader, writer = await said(machine, b"one")
        found: dict[str, Any] = json.loads(await machine.status("--json"))
        assert found["node"] == "spiffe://fleet.example/node/edge-a"
        assert (found["tunnels"][0]["up"], found["tunnels"][0]["streams"]) == (True, 1)
        assert (found["ports"][0]["route"], found["ports"][0]["open"]) == ("db", 1)
        assert f"{machine.gateway.address} up, 1 streams" in await machine.status()

        machine.write(*machine.port_to("other"))
        process.signal(signal.SIGHUP)
        await machine.log_says("read anew")
        _, second = await said(machine, b"two")
        assert [each.route for each in machine.gateway.requests] == ["db", "other"]
        machine.config.write_text(machine.config.read_text().replace('drain = "5s"', 'drain = "6s"'))
        process.signal(signal.SIGHUP)
        await machine.log_says("setting_fixed (agent.drain)")
        machine.config.write_text("[agent]\ncolour = 1")
        process.signal(signal.SIGHUP)
        await machine.log_says("setting_unknown")

        process.signal(signal.SIGTERM)
        await machine.log_says("stopping")
        writer.write(b"last")  # goes on while it drains
        assert await reader.read(4) == b"last"
        for each in (writer, second):
            each.write_eof()
            each.close()
        assert await asyncio.to_thread(process.wait) == 0
    assert not (machine.folder / "agent.sock").exists()


def refused(machine: Machine, *words: str) -> str:
    done = subprocess.run(
        [*AGENT, *words, "--config", str(machine.config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_what_stands_against_a_start_is_said_with_its_remedy(machine: Machine) -> None:
    machine.write()
    told = refused(machine, "run")
    assert "not_enrolled" in told
    assert "sallyport node enrol" in told
    machine.write("[agent.offers]", 'db = "nowhere"')
    assert "setting_invalid (agent.offers.db)" in refused(machine, "run")
    machine.config.unlink()
    assert "file_unreadable" in refused(machine, "run")


def test_an_agent_that_does_not_run_is_said_not_to(machine: Machine) -> None:
    machine.write()
    assert "no agent answers" in refused(machine, "status")


def test_a_token_that_is_none_is_refused(machine: Machine) -> None:
    machine.write()
    token = machine.folder / "token"
    token.write_text("sp1_nothing")
    token.chmod(0o600)
    assert "token_malformed" in refused(machine, "run", "--enrol-token-file", str(token))

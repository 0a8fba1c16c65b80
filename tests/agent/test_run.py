"""The agent as a whole: its parts joined, its settings, its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.configuration import RunSettings
from agent.control import ask
from agent.firewall.settings import FirewallSettings
from agent.port import PortSettings
from agent.run import Agent, run
from agent.services import Service
from agent.settings import AgentSettings
from agent.store import NodeStore
from deploy.demo.free_ports import free_ports
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.reasons import Reason
from tests.fakes.gateway import FakeGateway
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import identity_of

FAR = 10**10  # the certificate is renewed in the far future


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


def settings_of(folder: Path, gateway: FakeGateway, **more: Any) -> RunSettings:
    node = AgentSettings(directory=folder / "node", attestation="none")
    settings = RunSettings(node, (gateway.address,), drain=0.2, firewall=FirewallSettings(enabled=False))
    return replace(settings, **more)


@asynccontextmanager
async def agent_of(settings: RunSettings, authority: SmallAuthority, name: str = "edge-a") -> AsyncIterator[Agent]:
    store = NodeStore(settings.node.directory)
    store.save(identity_of(authority, name, now=FAR))
    agent = Agent(settings, store, None, SystemClock())
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        try:
            while not agent.tunnels.is_up:
                await asyncio.sleep(0.005)
            yield agent
        finally:
            agent.stop.set()


async def test_a_node_reaches_the_service_of_another(authority: SmallAuthority, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\n" + (await reader.read(-1)).upper())
        writer.write_eof()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    offers = {"db": Service.parse(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", "offers")}
    port = PortSettings(f"127.0.0.1:{free_ports(1)[0]}", "db", "edge-b")
    gateway = FakeGateway(authority)
    gateway.join_nodes()
    async with gateway.listening():
        at_a = settings_of(tmp_path / "a", gateway, ports=(port,))
        at_b = settings_of(tmp_path / "b", gateway, offers=offers)
        async with agent_of(at_a, authority, "edge-a"), agent_of(at_b, authority, "edge-b") as serving:
            serving.services.check = lambda call: None
            reader, writer = await asyncio.open_connection(port.address.host, port.address.port)
            writer.write(b"select 1")
            writer.write_eof()
            assert await reader.read(-1) == b"220 ready\nSELECT 1"
            writer.close()
    server.close()


async def test_without_a_signed_revision_nothing_is_served(authority: SmallAuthority, tmp_path: Path) -> None:
    gateway = FakeGateway(authority)
    gateway.join_nodes()
    port = PortSettings(f"127.0.0.1:{free_ports(1)[0]}", "db", "edge-a")
    async with gateway.listening():
        offers = {"db": Service.parse("tcp://127.0.0.1:1", "offers")}
        settings = settings_of(tmp_path, gateway, ports=(port,), offers=offers)
        async with agent_of(settings, authority) as agent:
            reader, _ = await asyncio.open_connection(port.address.host, port.address.port)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            assert agent.services.status()["refused"] == {"revision_missing": 1}
            assert agent.outbox.waiting == 1  # on record, for whoever asks why a permitted stream was refused


async def test_a_running_agent_says_how_it_stands(authority: SmallAuthority, tmp_path: Path) -> None:
    gateway = FakeGateway(authority)
    async with gateway.listening():
        settings = settings_of(tmp_path, gateway, offers={"db": Service.parse("unix:/x", "offers")})
        async with agent_of(settings, authority):
            found = await asyncio.to_thread(ask, settings.node.control)
            assert settings.node.control.stat().st_mode & 0o777 == 0o600
    assert found["node"] == "spiffe://fleet.example/node/edge-a"
    assert found["tunnels"][0]["up"] is True
    assert found["offers"]["services"] == ["db"]
    with pytest.raises(Fault) as caught:
        ask(settings.node.control)
    assert caught.value.reason is Reason.SERVER_UNREACHABLE


async def test_an_agent_that_is_told_to_stop_lets_streams_end(authority: SmallAuthority, tmp_path: Path) -> None:
    port = PortSettings(f"127.0.0.1:{free_ports(1)[0]}", "db", "edge-b")
    gateway = FakeGateway(authority)
    async with gateway.listening():
        settings = settings_of(tmp_path, gateway, ports=(port,), drain=30)
        async with agent_of(settings, authority) as agent:
            reader, writer = await asyncio.open_connection(port.address.host, port.address.port)
            writer.write(b"one")
            assert await reader.read(3) == b"one"
            agent.stop.set()
            await gateway.wait_until(lambda: gateway.ends[0].is_draining)
            writer.write(b"two")
            assert await reader.read(3) == b"two"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(port.address.host, port.address.port)
            writer.write_eof()
            assert await reader.read(-1) == b""
            writer.close()


async def test_settings_that_are_read_anew_change_what_can_change(authority: SmallAuthority, tmp_path: Path) -> None:
    gateway, other = FakeGateway(authority), FakeGateway(authority, name="gw-2")
    async with gateway.listening(), other.listening():
        settings = settings_of(tmp_path, gateway)
        async with agent_of(settings, authority) as agent:
            offers = {"db": Service.parse("unix:/x", "offers")}
            agent.reload(replace(settings, gateways=(other.address,), offers=offers))
            end = await other.tunnel()
            assert end.hello is not None
            assert end.hello.services == ("db",)
            with pytest.raises(Fault) as caught:
                agent.reload(replace(settings, drain=1.0))
            assert caught.value.reason is Reason.SETTING_FIXED
            assert agent.settings.gateways == (other.address,)


async def test_a_node_that_is_not_enrolled_does_not_start(tmp_path: Path) -> None:
    settings = RunSettings(AgentSettings(directory=tmp_path / "node", attestation="none"))
    with pytest.raises(Fault) as caught:
        await run(settings, lambda: settings, SystemClock())
    assert caught.value.reason is Reason.NOT_ENROLLED


async def test_a_port_that_cannot_listen_stops_the_start_with_its_name(
    authority: SmallAuthority, tmp_path: Path
) -> None:
    gateway = FakeGateway(authority)
    async with gateway.listening():
        taken = PortSettings(f"127.0.0.1:{gateway.address.port}", "db", "edge-b")
        settings = settings_of(tmp_path, gateway, ports=(taken,))
        NodeStore(settings.node.directory).save(identity_of(authority, now=FAR))
        with pytest.raises(Fault) as caught:
            await run(settings, lambda: settings, SystemClock())
    assert caught.value.reason is Reason.SETTING_INVALID
    assert taken.listen in caught.value.field


def test_the_running_agent_holds_nothing_of_the_command_line(tmp_path: Path, authority: SmallAuthority) -> None:
    """A process that never imported typer, found by its own control socket."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[agent]\ndirectory = "{tmp_path / "node"}"\nattestation = "none"\n[agent.firewall]\nenabled = false\n'
    )
    NodeStore(tmp_path / "node").save(identity_of(authority, "edge-a", now=FAR))
    words = [sys.executable, "-m", "sallyport", "agent", "run", "--config", str(config)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as started:
        try:
            until = time.monotonic() + 30
            while not (tmp_path / "node/agent.sock").exists():
                assert started.poll() is None, started.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.01)
            command = Path(f"/proc/{started.pid}/cmdline").read_bytes().split(b"\0")
            assert b"agent.process" in command
            assert ask(tmp_path / "node/agent.sock")["node"].endswith("/node/edge-a")
        finally:
            started.terminate()
        assert started.wait(30) == 0


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'[agent]\ndirectory = "{tmp_path / "node"}"\n')
    words = [sys.executable, "-m", "sallyport", "agent", "run", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "not_enrolled" in done.stderr
    assert Reason.NOT_ENROLLED.remedy in done.stderr


def test_the_agents_process_imports_no_command_line() -> None:
    program = "import sys, agent.process; sys.exit(any(m.partition('.')[0] in ('typer', 'rich') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

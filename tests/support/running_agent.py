"""`sallyport agent run` as a process, for a node of a whole system."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.control import ask
from deploy.demo.free_ports import free_ports
from foundation.faults import Fault
from tests.support.processes import Running
from tests.support.system import Node

PATIENCE = 30.0


class RunningAgent:
    """The agent of `node`: `offers` are its services by name, `ports` its local ports by route and target."""

    def __init__(
        self,
        node: Node,
        gateways: tuple[str, ...] = (),
        *,
        offers: Mapping[str, str] = {},
        ports: tuple[tuple[str, str, str], ...] = (),
        more: str = "",
        through_tunnels: bool = False,
    ) -> None:
        """`ports` are (route, target, protocol); `more` is TOML behind the section's own settings."""
        self.node = node
        self.through_tunnels = through_tunnels
        self.process: Running | None = None
        self.control = node.folder / "control.sock"
        numbers = free_ports(len(ports)) if ports else ()
        self.ports = {(route, target): port for (route, target, _), port in zip(ports, numbers, strict=True)}
        gateways = gateways or (f"{node.system.host}:{node.system.ports['gateway']}",)
        lines = [f"gateways = {list(gateways)}".replace("'", '"'), f'control = "{self.control}"', more]
        lines += ["[agent.firewall]", "enabled = false"]  # these agents share one machine
        lines += ["[agent.offers]", *(f'{name} = "{where}"' for name, where in offers.items())]
        for (route, target, protocol), port in zip(ports, numbers, strict=True):
            lines += ["[[agent.port]]", f'listen = "127.0.0.1:{port}"', f'route = "{route}"']
            lines += [f'target = "{target}"', f'protocol = "{protocol}"']
        self._toml = "\n".join([*lines, ""])

    def _own(self, text: str) -> str:
        """The node's settings; `through_tunnels`, the authority's API is not where they say, so that only a tunnel
        leads there."""
        api = f"{self.node.system.host}:{self.node.system.ports['api']}"
        if not self.through_tunnels:
            return text
        assert api in text
        return text.replace(api, f"{self.node.system.host}:1") + "through_tunnels = true\n"

    def start(self) -> None:
        """Start it, and wait until it has its tunnels and its revision."""
        self.launch()
        assert self.process is not None
        self.process.until(lambda: self.is_up, f"the agent of {self.node.name}")

    def launch(self) -> None:
        """Start it, without waiting."""
        path = self.node.folder / "agent-run.toml"
        path.write_text(self._own(self.node.config.read_text()) + self._toml)
        words = [sys.executable, "-m", "sallyport", "agent", "run", "--config", str(path)]
        self.process = Running(words, self.node.folder / "agent.log")

    @property
    def is_up(self) -> bool:
        """Whether all its tunnels stand and it holds a revision to judge by."""
        status = self.status()
        return bool(status) and all(each["up"] for each in status["tunnels"]) and status["floor"] > 0

    def status(self) -> dict[str, Any]:
        """How it stands; nothing while it does not answer."""
        try:
            return ask(self.control)
        except Fault:
            return {}

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def connect(self, route: str, target: str) -> socket.socket:
        """A program's connection to the local port of this route and target."""
        return socket.create_connection(("127.0.0.1", self.ports[route, target]), timeout=PATIENCE)

    @contextlib.contextmanager
    def running(self) -> Iterator[RunningAgent]:
        try:
            self.start()
            yield self
        finally:
            self.stop()


class EchoService:
    """A node's service: says back what it hears. `accepted` counts connections, `heard` bytes."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.accepted = self.heard = self.datagrams = 0

    @property
    def tcp(self) -> str:
        return f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def udp(self) -> str:
        return f"udp://127.0.0.1:{self._udp.getsockname()[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[EchoService]:
        threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._serve_datagrams)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for each in (self._listening, self._udp):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                self.heard += len(data)
                connection.sendall(data)

    def _serve_datagrams(self) -> None:
        while True:
            try:
                data, source = self._udp.recvfrom(65536)
            except OSError:
                return
            if not data and not source:
                return
            self.datagrams += 1
            with contextlib.suppress(OSError):
                self._udp.sendto(data, source)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """What comes back for `data`; less when the connection ends before."""
    threading.Thread(target=_send, args=(connection, data), daemon=True).start()
    found = b""
    while len(found) < len(data):
        piece = connection.recv(65536)
        if not piece:
            break
        found += piece
    return found


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def is_cut(connection: socket.socket) -> bool:
    """Waits until it ends; whether it did."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def log_of(agent: RunningAgent) -> str:
    path: Path = agent.node.folder / "agent.log"
    return path.read_text() if path.exists() else ""

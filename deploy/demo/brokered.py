"""The demo's chapters of two nodes: a stream that the gateway brokers, one that it refuses, and the way around it that
the kernel closes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from deploy.demo.emulated_tpm import EmulatedTpm, manufacture
from deploy.demo.free_ports import free_ports
from deploy.demo.tpm_maker import TpmMaker

SECOND = "edge-2"
ROUTES = """
  - {name: sensor, type: stream, service: sensor, kinds: [node], about: A node's sensor}
  - {name: shell, type: stream, service: shell, kinds: [node], about: A node's shell}
"""
GRANTS = """
  - {id: agent-sensor, role: edge-agent, route: sensor, expires: 2027-12-31}
"""
_SECONDS = 20.0
_NETWORK, _LEFT, _RIGHT = "10.99.0.0/24", "10.99.0.1", "10.99.0.2"


class Teller(Protocol):
    """What the chapters need of the story."""

    state: Path
    maker: TpmMaker
    ports: dict[str, int]
    stack: contextlib.ExitStack

    def chapter(self, title: str) -> contextlib.AbstractContextManager[None]: ...

    def tell(self, *lines: str) -> None: ...

    def run(self, *words: str, expect: int = 0, quiet: bool = False) -> str: ...

    def publish(self, number: int) -> None: ...

    def background(self, words: list[str], log: str) -> None: ...

    def api(self) -> tuple[str, ...]: ...


class TwoNodes:
    """The second node, and what the first reaches of it. `first` is the first one's agent.toml."""

    def __init__(self, story: Teller, folder: Path, first: Path) -> None:
        self._story = story
        self._folder = folder
        self._first = first
        self._second = folder / "agent-2.toml"
        self._tpm: EmulatedTpm = manufacture(folder / "tpm-2", story.maker)
        self._sensor, self._port, self._shell = free_ports(3)

    def second_node(self) -> None:
        with self._story.chapter("A second node enrols, and the security team grants one route to its kind"):
            story = self._story
            story.stack.enter_context(self._tpm)
            story.stack.enter_context(_sensor(self._sensor))
            text = self._first.read_text()
            for before, after in self._own_settings(text):
                text = text.replace(before, after)
            self._second.write_text(text)
            words = ["inventory", "add", SECOND, "--tier", "3", "--site", "lab", "--segment", "edge"]
            story.run(*words, "--role", "edge-agent", *story.api(), quiet=True)
            token = self._folder / "token-2"
            story.run("token", "create", SECOND, "--output", str(token), *story.api(), quiet=True)
            issued = json.loads(
                story.run("node", "enrol", "--token-file", str(token), "--config", str(self._second), "--json")
            )
            story.tell(f"identity     {issued['spiffe_id']}")
            for name, key, more in (("routes", "routes", ROUTES), ("grants", "grants", GRANTS)):
                path = story.state / "policy" / f"{name}.yaml"
                path.write_text(path.read_text().replace(f"\n{key}:\n", f"\n{key}:\n{more}", 1))
            story.publish(3)

    def agents(self) -> None:
        with self._story.chapter("Both run their agents: one tunnel each to the gateway, nothing listens for others"):
            gateway = f"localhost:{self._story.ports['gateway']}"
            self._write_agent(self._second, gateway, f'[agent.offers]\nsensor = "tcp://127.0.0.1:{self._sensor}"\n')
            ports = "".join(
                f'[[agent.port]]\nlisten = "127.0.0.1:{port}"\nroute = "{route}"\ntarget = "{SECOND}"\n'
                for route, port in (("sensor", self._port), ("shell", self._shell))
            )
            self._write_agent(self._first, gateway, ports)
            for number, config in ((2, self._second), (1, self._first)):
                words = [sys.executable, "-m", "sallyport", "agent", "run", "--config", str(_running(config))]
                self._story.background(words, f"agent-{number}.log")
            for config in (self._second, self._first):
                _until(lambda config=config: self._is_up(config), f"the agent of {config.name}")  # type: ignore[misc]  # bound
            self._story.tell(f"edge-1 has 127.0.0.1:{self._port} for the route `sensor` of {SECOND}")

    def brokered(self) -> None:
        with self._story.chapter("A brokered stream: edge-1 reads edge-2's sensor through the gateway"):
            with socket.create_connection(("127.0.0.1", self._port), timeout=_SECONDS) as stream:
                stream.sendall(b"temperature\n")
                self._story.tell(f"edge-2's sensor says: {stream.recv(100).decode().strip()}")
            why = self._story.run("access", "why", "edge-1", "sensor", "--to", SECOND, *self._story.api())
            self._story.tell(*why.strip().splitlines()[:6])

    def refused(self) -> None:
        with self._story.chapter("The same to the route `shell`, which no grant covers: edge-2 hears nothing of it"):
            with socket.create_connection(("127.0.0.1", self._shell), timeout=_SECONDS) as stream:
                self._story.tell("the connection is closed" if _ends(stream) else "THE STREAM IS OPEN")
            why = self._story.run("access", "why", "edge-1", "shell", "--to", SECOND, *self._story.api())
            self._story.tell(*why.strip().splitlines()[:4])

    def direct(self) -> None:
        """Needs root for network namespaces; without it, the rules are shown alone."""
        with self._story.chapter("Around the gateway there is no way: each node's kernel drops what other nodes send"):
            words = ("node", "firewall", "--network", _NETWORK, "--config", str(self._second))
            if os.geteuid() or not shutil.which("nft") or not shutil.which("ip"):
                rules = self._story.run("node", "firewall", "--dry-run", *words[2:])
                self._story.tell(*rules.strip().splitlines()[:12], "… (as root, this chapter tries it)")
                return
            with _two_hosts() as (left, right):
                self._story.tell(f"two hosts with a cable, before: {_reaches(left, right)}")
                for host in (left, right):
                    _inside(host, sys.executable, "-m", "sallyport", "node", "firewall", "apply", *words[2:])
                self._story.tell(f"after `sallyport node firewall apply` on both: {_reaches(left, right)}")

    def watch_cut(self) -> Callable[[], float]:
        """Open a stream, and give what waits for its end and says when that came (seconds since the Unix epoch)."""
        stream = socket.create_connection(("127.0.0.1", self._port), timeout=_SECONDS)
        stream.sendall(b"temperature\n")
        stream.recv(100)
        ended: list[float] = []

        def watch() -> None:
            with stream:
                _ends(stream)
                ended.append(time.time())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()

        def wait() -> float:
            thread.join(_SECONDS)
            return ended[0] if ended else float("inf")

        return wait

    # --- inside -----------------------------------------------------------------------------------------------

    def _own_settings(self, text: str) -> Iterator[tuple[str, str]]:
        """What the second node's settings have in the place of the first one's."""
        for name, own in (
            ("directory", str(self._folder / "node-2")),
            ("tcti", self._tpm.tcti),
            ("event_log", str(self._tpm.event_log)),
        ):
            line = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
            yield line, f'{name} = "{own}"'

    def _write_agent(self, config: Path, gateway: str, tables: str) -> None:
        own = f'gateways = ["{gateway}"]\ncontrol = "{_control(config)}"\n'
        own += "[agent.firewall]\nenabled = false  # both agents are on this one machine\n"
        _running(config).write_text(config.read_text() + own + tables)

    def _is_up(self, config: Path) -> bool:
        status = self._status(config)
        return bool(status) and all(each["up"] for each in status["tunnels"]) and status["floor"] > 0

    def _status(self, config: Path) -> dict[str, Any]:
        words = [sys.executable, "-m", "sallyport", "agent", "status", "--json", "--config", str(_running(config))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found


def _running(config: Path) -> Path:
    return config.with_name(f"{config.stem}-run.toml")


def _control(config: Path) -> Path:
    return config.with_suffix(".sock")


@contextlib.contextmanager
def _sensor(port: int) -> Iterator[None]:
    """What edge-2 has to offer."""
    listening = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(100):
                connection.sendall(b"21.5 degrees\n")

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listening.close()


@contextlib.contextmanager
def _two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces of our own with a cable between them."""
    left, right = f"sallyport-demo-{os.getpid()}-1", f"sallyport-demo-{os.getpid()}-2"
    with contextlib.ExitStack() as stack:
        for host in (left, right):
            _do("ip", "netns", "add", host)
            stack.callback(_do, "ip", "netns", "delete", host)
        _do("ip", "-n", left, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right)
        for host, address in ((left, _LEFT), (right, _RIGHT)):
            _do("ip", "-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _do("ip", "-n", host, "link", "set", device, "up")
        yield left, right


def _reaches(left: str, right: str) -> str:
    """What comes of a connection from the one to the other."""
    listen = "import socket; s = socket.create_server(('', 7)); print(flush=True); s.accept()"
    connect = f"import socket; socket.create_connection(('{_RIGHT}', 7), timeout=1)"
    server = subprocess.Popen(
        ["ip", "netns", "exec", right, sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None  # noqa: S101  # it was asked for
        server.stdout.readline()
        words = ["ip", "netns", "exec", left, sys.executable, "-c", connect]
        tried = subprocess.run(words, capture_output=True, text=True, check=False)
    finally:
        server.kill()
        server.wait()
    return "it connects" if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def _inside(host: str, *words: str) -> None:
    _do("ip", "netns", "exec", host, *words)


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the demo failed: {' '.join(words)}\n{done.stderr}")


def _ends(stream: socket.socket) -> bool:
    try:
        while stream.recv(100):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def _until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"the demo failed: {what} does not come up; see .demo/*.log")
        time.sleep(0.05)

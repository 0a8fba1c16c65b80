"""A whole Sallyport as users have it: `sallyport init` and `serve` as processes, settings and policy as files, nodes
with a TPM, and clients of every kind. Nothing in it is replaced."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509

from agent.keys import client_context as node_context
from agent.keys import stored_key, tpm_for
from agent.settings import AgentSettings
from agent.store import NodeStore
from deploy.demo.emulated_tpm import EmulatedTpm
from deploy.demo.free_ports import free_ports
from deploy.demo.tpm_maker import TpmMaker
from foundation.client import ApiClient
from foundation.files import write_secret
from foundation.tls import KeyPair, client_context
from policies.archive import unpack
from policies.lifecycle.revision import Revision
from policies.signed import MANIFEST, SIGNATURE
from policies.signing import SigningKey, load_signing_key
from tests.support.commands import CommandServer, Done
from tests.support.processes import PATIENCE, Running, answers, listens, wait_until

DOMAIN = "fleet.example"
_LISTENERS = ("gateway", "enrolment", "api", "health")
_MANY_ENROLMENTS = "\n[enrolment.rate]\nburst = 10000\nper_minute = 100000\n"


@dataclass(frozen=True)
class Answered:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The refusal's body (RFC 9457)."""
        assert self.headers["content-type"].startswith("application/problem+json"), self
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def reason(self) -> str:
        return str(self.problem["reason"])

    @property
    def decision(self) -> str:
        return self.headers["x-sallyport-decision"]


class OpenAnswer:
    """A response that lasts."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self._read = b""
        self.decision = response.headers.get("x-sallyport-decision", "")

    def line(self) -> dict[str, Any]:
        """The next line, of JSON."""
        while b"\n" not in self._read:
            piece = self._response.read1()
            assert piece, "it ended"
            self._read += piece
        line, self._read = self._read.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def ending(self) -> str:
        """Read on until it ends: `whole` as HTTP has it, or `cut` before that."""
        try:
            while self._response.read1():
                pass
        except TimeoutError:
            raise AssertionError("it goes on") from None
        except (http.client.HTTPException, OSError):
            return "cut"
        return "whole"


class Client:
    """One connection with a client certificate; for one thread."""

    def __init__(self, context: ssl.SSLContext, port: int, host: str = "localhost", timeout: float = PATIENCE) -> None:
        self.connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        self.connection.connect()
        self.connection.auto_open = 0  # a connection that ended is the test's business

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        response = self._send(method, path, body, headers)
        return Answered(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str) -> Answered:
        return self.ask("GET", path)

    def post(self, path: str, document: object) -> Answered:
        return self.ask("POST", path, json.dumps(document).encode())

    def watch(self, key: str) -> OpenAnswer:
        """etcd's watch on `key`, opened and confirmed."""
        response = self._send("POST", "/v3/watch", json.dumps({"create_request": {"key": key}}).encode(), {})
        assert response.status == 200, response.read()
        opened = OpenAnswer(response)
        assert opened.line()["result"]["created"]
        return opened

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        self.connection.request(method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()})
        return self.connection.getresponse()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def set_trust_time_ahead(state: Path, seconds: float) -> float:
    """The same of the installation whose state is in the folder `state`."""
    path = state / "trust-time"
    before = float(path.read_text()) if path.exists() else 0.0  # a crash may come before it is first written
    floor = max(before, time.time()) + seconds
    write_secret(path, f"{floor:.3f}".encode())
    return floor


def workers_of(pid: int) -> set[int]:
    """The process IDs of the workers of the main process `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if b"gateway.worker" in _command(child)}


def _command(pid: str) -> bytes:
    """The words that started it; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class System:
    """One installation in `folder`, its control plane at `control_plane`. It listens on the address `listens`, clients
    reach it as `host`, and its processes have `environment` above ours."""

    folder: Path
    control_plane: str
    commands: CommandServer
    maker: TpmMaker
    revision: int = 1
    process: Running | None = None
    ports: dict[str, int] = field(default_factory=dict)
    listens: str = "127.0.0.1"
    host: str = "localhost"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        return self.state / "sallyport.toml"

    @property
    def workspace(self) -> Path:
        return self.state / "policy"

    @property
    def authority(self) -> Path:
        return self.state / "authority"

    # --- its life -------------------------------------------------------------------------------------

    def initialise(self) -> Done:
        """`sallyport init`, then the settings that emulated TPMs and a test's many enrolments need."""
        self.folder.mkdir(exist_ok=True)
        self._take_ports()
        words = ["init", "--trust-domain", DOMAIN, "--directory", str(self.state), "--host", self.listens]
        words += ["--control-plane", self.control_plane, "--server-name", self.host]
        for name in _LISTENERS:
            words += [f"--{name}-port", str(self.ports[name])]
        done = self.run(*words)
        self.edit('classes = ["hardware"] ', 'classes = ["hardware", "virtual"] ')
        self.edit(*PATIENT_ENGINE)
        self.config.write_text(self.config.read_text() + _MANY_ENROLMENTS)
        (self.state / "makers" / "virtual" / "maker.pem").write_bytes(self.maker.root_pem)
        return done

    def copy(self, folder: Path) -> System:
        """Another one with the same keys, before either was started."""
        shutil.copytree(self.state, folder / "state")
        twin = replace(self, folder=folder, process=None, ports={})
        twin._take_ports()
        text = self.config.read_text().replace(str(self.folder), str(folder))
        for name, port in self.ports.items():
            text = text.replace(f"port = {port}\n", f"port = {twin.ports[name]}\n")
            text = text.replace(f"port = {port} ", f"port = {twin.ports[name]} ")
        twin.config.write_text(text)
        return twin

    def _take_ports(self) -> None:
        self.ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))

    def edit(self, before: str, after: str) -> None:
        """Change the settings."""
        text = self.config.read_text()
        assert before in text
        self.config.write_text(text.replace(before, after))

    def start(self) -> None:
        """`sallyport serve`, until it is ready."""
        self.launch()
        assert self.process is not None
        self.process.until(lambda: answers(f"{self.health}/readyz"), "sallyport serve")

    def launch(self) -> None:
        """`sallyport serve`, without waiting."""
        words = [sys.executable, "-m", "sallyport", "serve", "--config", str(self.config)]
        self.process = Running(words, self.folder / "serve.log", self.environment)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        return self.process.terminate()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    @property
    def workers(self) -> set[int]:
        """The process IDs of its workers."""
        assert self.process is not None
        return workers_of(self.process.pid)

    def set_trust_time_ahead(self, seconds: float) -> float:
        """While it is off: as if it had been off for longer. Gives its trust time, in seconds since the Unix epoch."""
        return set_trust_time_ahead(self.state, seconds)

    @contextlib.contextmanager
    def running(self) -> Iterator[System]:
        try:
            self.start()
            yield self
        finally:
            if self.process is not None:
                self.stop()

    @contextlib.contextmanager
    def unready(self) -> Iterator[System]:
        """Runs a system that answers and is not ready."""
        try:
            self.launch()
            assert self.process is not None
            self.process.until(lambda: listens(self.ports["gateway"]), "sallyport serve")
            yield self
        finally:
            self.stop()

    def readiness(self) -> tuple[int, Any]:
        """What /readyz answers."""
        return self.page("/readyz", json.loads)

    def page(self, path: str, read: Callable[[bytes], Any] = bytes.decode) -> tuple[int, Any]:
        """A page of the health listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["health"], timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, read(response.read())
        finally:
            connection.close()

    def ended_for(self, reason: str) -> int:
        """How many exchanges ended for this reason, by its own count."""
        lines = self.page("/metrics")[1].splitlines()
        named = [line for line in lines if line.startswith("sallyport_exchanges_total{") and f'"{reason}"' in line]
        return sum(int(float(line.split()[-1])) for line in named)

    # --- operating it ------------------------------------------------------------------------------------

    @property
    def health(self) -> str:
        return f"http://127.0.0.1:{self.ports['health']}"

    @property
    def api(self) -> ApiClient:
        """Its API over the Unix socket, as this machine's root."""
        return ApiClient(self.state / "sallyport.sock")

    def run(self, *words: str, expect: int = 0) -> Done:
        """A command that needs no API."""
        return self.commands.run(*words).expect(expect)

    def operate(self, *words: str, expect: int = 0) -> Done:
        """A command over the Unix socket."""
        return self.run(*words, "--socket", str(self.state / "sallyport.sock"), expect=expect)

    def audited(self) -> list[dict[str, Any]]:
        """Every event of the audit log with its `index` and `time`; the log must verify."""
        self.run("audit", "verify", "--config", str(self.config))
        _, *lines = self.run("audit", "export", "--config", str(self.config)).out.splitlines()
        records = [json.loads(line)["record"] for line in lines]
        return [record.pop("event") | record for record in records]

    def certificates(self) -> dict[str, dict[str, Any]]:
        """The ledger, by serial."""
        return {row["serial"]: row for row in self.operate("cert", "list", "--json").json}

    # --- policy --------------------------------------------------------------------------------------------

    def add_policy(self, routes: str = "", grants: str = "", roles: str = "") -> None:
        """Put YAML below the keys of the same names in the workspace; nothing is published."""
        for name, key, text in (("routes", "routes", routes), ("grants", "grants", grants), ("grants", "roles", roles)):
            path = self.workspace / f"{name}.yaml"
            before = path.read_text()
            assert f"\n{key}:\n" in before
            path.write_text(before.replace(f"\n{key}:\n", f"\n{key}:\n{text}", 1))

    def build(self, number: int = 0) -> Path:
        """A signed revision of the workspace."""
        self.revision = number or self.revision + 1
        bundle = self.folder / f"revision-{self.revision}.bundle"
        words = ["policy", "build", str(self.workspace), "--number", str(self.revision), "--out", str(bundle)]
        self.run(*words, "--key", str(self.authority / "policy.key"))
        return bundle

    def publish(self) -> int:
        """Build the workspace and publish it; returns once the gateway enforces it."""
        self.operate("policy", "publish", str(self.build()))
        self.enforces(self.revision)
        return self.revision

    def renumbered(self, bundle: Path, number: int) -> Path:
        """The revision in `bundle` signed under another number: OPA need not compile it again."""
        members = unpack(bundle.read_bytes())
        manifest = json.dumps(json.loads(members.pop(MANIFEST)) | {"number": number}, sort_keys=True).encode()
        del members[SIGNATURE]
        again = self.folder / f"revision-{number}.bundle"
        again.write_bytes(Revision(number, manifest, members).signed(self.policy_key))
        return again

    @property
    def policy_key(self) -> SigningKey:
        return load_signing_key(self.authority / "policy.key")

    def enforces(self, revision: int) -> None:
        wait_until(lambda: self.numbers()["policy"] == revision, f"revision {revision} to be enforced")

    def numbers(self) -> dict[str, int]:
        found: dict[str, int] = self.api.get("/v1/gateway")["numbers"]
        return found

    # --- who calls -----------------------------------------------------------------------------------------

    @property
    def root(self) -> bytes:
        return (self.authority / "root.pem").read_bytes()

    @property
    def operator(self) -> KeyPair:
        """The first operator's certificate and key."""
        return KeyPair(self.authority / "operator.pem", self.authority / "operator.key")

    def connect_operator(self, listener: str = "gateway") -> Client:
        return Client(client_context(self.root, pair=self.operator), self.ports[listener], self.host)

    def add_node(self, name: str, device: EmulatedTpm, **description: str) -> Node:
        """A node that the inventory expects: tier 2, segment edge, role edge-agent unless told otherwise."""
        wanted = {"tier": "2", "segment": "edge", "role": "edge-agent", **description}
        self.operate("inventory", "add", name, *(word for k, v in wanted.items() for word in (f"--{k}", v)))
        return Node(self, name, device)


class Node:
    """A node's machine: its folder, its agent.toml, its TPM."""

    def __init__(self, system: System, name: str, device: EmulatedTpm) -> None:
        self.system, self.name, self.device = system, name, device
        self.folder = system.folder / name
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.write_settings()

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def settings(self) -> AgentSettings:
        return AgentSettings.load(self.config)

    @property
    def store(self) -> NodeStore:
        return NodeStore(self.settings.directory)

    @property
    def id(self) -> str:
        return f"spiffe://{DOMAIN}/node/{self.name}"

    def write_settings(self, **more: str) -> None:
        ports, host = self.system.ports, self.system.host
        values: dict[str, str] = {
            "authority": f"{host}:{ports['enrolment']}",
            "renewal": f"{host}:{ports['api']}",
            "gateway": f"{host}:{ports['gateway']}",
            "directory": str(self.folder / "identity"),
            "tcti": self.device.tcti,
            "event_log": str(self.device.event_log),
            **more,
        }
        self.config.write_text("[agent]\n" + "".join(f'{name} = "{value}"\n' for name, value in values.items()))

    @property
    def serial(self) -> str:
        """Its certificate's, in lower-case hex."""
        leaf = x509.load_der_x509_certificate(self.store.identity().issued.chain[0])
        return format(leaf.serial_number, "x")

    def token(self) -> Path:
        """A fresh token's file."""
        path = self.folder / "token"
        path.unlink(missing_ok=True)
        self.system.operate("token", "create", self.name, "--output", str(path))
        return path

    def enrol(self, expect: int = 0) -> Done:
        """`sallyport node enrol` with a fresh token."""
        return self.run("enrol", "--token-file", str(self.token()), "--json", expect=expect)

    def renew(self, expect: int = 0) -> Done:
        return self.run("renew", "--json", expect=expect)

    def call(self, *words: str, expect: int = 0) -> Done:
        return self.run("call", *words, expect=expect)

    def run(self, *words: str, expect: int = 0) -> Done:
        return self.system.run("node", *words, "--config", str(self.config), expect=expect)

    def connect(self, listener: str = "gateway") -> Client:
        """A connection proven by the key in its TPM."""
        return self.connect_to(self.system.host, self.system.ports[listener])

    def connect_to(self, host: str, port: int, timeout: float = PATIENCE) -> Client:
        """The same, to a gateway elsewhere."""
        identity, settings = self.store.identity(), self.settings
        with tpm_for(identity.key, settings) as tpm:
            key = stored_key(identity.key, tpm)
            try:
                return Client(node_context(identity, key), port, host, timeout)
            except ssl.SSLError as error:  # OpenSSL loses why a signature was not made
                raise getattr(key, "fault", None) or error from error


PATIENT_ENGINE = ("[policy]\n", '[policy]\ndecision_timeout = "5s"\n')  # a busy machine is no denial
MakeSystem = Callable[[str], System]
MakeTpm = Callable[[str], EmulatedTpm]

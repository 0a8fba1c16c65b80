"""Gateways on machines of their own, whose authority is a `System`: `sallyport join` and `serve` as processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.settings import Address
from deploy.demo.free_ports import free_ports
from foundation.client import ApiClient
from foundation.tls import KeyPair, client_context
from tests.support.commands import Done
from tests.support.processes import Running, answers
from tests.support.system import DOMAIN, PATIENT_ENGINE, Client, Node, System, set_trust_time_ahead, workers_of

_LISTENERS = ("gateway", "api", "health")


def only_authority(system: System) -> System:
    """`system`, not started yet, without a data plane of its own; gateways may join it without a TPM."""
    system.edit('profile = "development"', 'role = "authority"\nprofile = "development"')
    system.edit("without_tpm = [] ", 'without_tpm = ["gateway/*"] ')
    return system


class Gateway:
    """One gateway's machine. It listens on the address `listens`, clients reach it as `host`, and its processes have
    `environment` above ours."""

    def __init__(
        self,
        system: System,
        name: str,
        listens: str = "127.0.0.1",
        host: str = "localhost",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.system, self.name = system, name
        self.listens, self.host, self.environment = listens, host, environment
        self.state = system.folder / name
        self.ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
        self.process: Running | None = None

    @property
    def config(self) -> Path:
        return self.state / "sallyport.toml"

    @property
    def pair(self) -> KeyPair:
        """Its certificate and key."""
        path = self.state / "identity" / "tls.pem"
        return KeyPair(path, path)

    @property
    def api(self) -> ApiClient:
        return ApiClient(self.state / "sallyport.sock")

    @property
    def address(self) -> Address:
        return Address(self.host, self.ports["gateway"])

    @property
    def health(self) -> str:
        return f"http://127.0.0.1:{self.ports['health']}"

    # --- joining ------------------------------------------------------------------------------------

    def admit(self) -> Path:
        """What security does at the authority; the token's file."""
        operate, gateway = self.system.operate, (self.name, "--kind", "gateway")
        operate("inventory", "add", *gateway)
        operate("inventory", "update", *gateway, "--label", f"names={self.host},127.0.0.1")
        token = self.system.folder / f"{self.name}.token"
        operate("token", "create", *gateway, "--output", str(token))
        return token

    def join(self, token: Path, expect: int = 0) -> Done:
        """`sallyport join`."""
        words = ["join", self.name, "--trust-domain", DOMAIN, "--directory", str(self.state), "--host", self.listens]
        words += ["--enrolment", f"{self.system.host}:{self.system.ports['enrolment']}"]
        words += ["--api", f"{self.system.host}:{self.system.ports['api']}"]
        words += ["--policy-key", str(self.system.authority / "policy.pub"), "--token-file", str(token)]
        for name, port in self.ports.items():
            words += [f"--{name}-port", str(port)]
        done = self.system.run(*words, expect=expect)
        if not expect:
            self.edit(*PATIENT_ENGINE)
        return done

    def edit(self, before: str, after: str) -> None:
        """Change the settings."""
        text = self.config.read_text()
        assert before in text
        self.config.write_text(text.replace(before, after))

    def append(self, section: str) -> None:
        """Add a section to the settings."""
        self.config.write_text(f"{self.config.read_text()}\n{section}\n")

    # --- its life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """`sallyport serve`, until it is ready."""
        words = [sys.executable, "-m", "sallyport", "serve", "--config", str(self.config)]
        self.process = Running(words, self.system.folder / f"{self.name}.log", self.environment)
        self.process.until(lambda: answers(f"{self.health}/readyz"), "the gateway")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def set_trust_time_ahead(self, seconds: float) -> None:
        """While it is off: as if it had been off for longer."""
        set_trust_time_ahead(self.state, seconds)

    @contextlib.contextmanager
    def running(self) -> Iterator[Gateway]:
        try:
            self.start()
            yield self
        finally:
            if self.process is not None:
                self.process.terminate()

    @property
    def workers(self) -> set[int]:
        """The process IDs of its workers."""
        assert self.process is not None
        return workers_of(self.process.pid)

    # --- using it -----------------------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """What it knows."""
        found: dict[str, Any] = self.api.get("/v1/gateway")
        return found

    def serves(self, node: Node) -> None:
        """From now on `node` calls through this gateway."""
        text, own = node.config.read_text(), node.settings.gateway
        node.config.write_text(text.replace(f'gateway = "{own}"', f'gateway = "{self.address}"'))

    def connect(self, node: Node) -> Client:
        """A connection of `node` to this gateway."""
        return node.connect_to(self.host, self.ports["gateway"])

    def ask_authority(self, path: str) -> Any:
        """GET at the authority's API with this gateway's certificate, as whoever holds it may."""
        with Client(
            client_context(self.system.root, pair=self.pair), self.system.ports["api"], self.system.host
        ) as client:
            return client.get(path)

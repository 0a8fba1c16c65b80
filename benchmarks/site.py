"""A whole Sallyport on loopback, as a benchmark's subject: `sallyport init`, a fleet, `sallyport serve`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import ENVIRONMENT, ROOT, answers, running, wait_until
from deploy.demo.free_ports import free_ports

DOMAIN = "bench.example"
PORTS = ("gateway", "enrolment", "api", "health")


@dataclass(frozen=True, slots=True)
class Site:
    """Where it lies, what it listens on, and the process that serves."""

    folder: Path
    ports: Mapping[str, int]
    pid: int = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        return self.state / "sallyport.toml"

    @property
    def root(self) -> Path:
        """PEM of the root, which server and clients share."""
        return self.state / "authority" / "root.pem"

    @property
    def server_pair(self) -> tuple[Path, Path]:
        """Certificate chain and key of the listeners: peers present the same."""
        return self.state / "authority" / "server.pem", self.state / "authority" / "server.key"

    @property
    def clients(self) -> Path:
        """Folder of what `enlist` makes for clients."""
        return self.folder / "clients"


def initialise(folder: Path, workspace: Mapping[str, bytes] | None = None) -> Site:
    """`sallyport init` below `folder`, with `workspace` as its policy, or the starter's."""
    site = Site(folder, dict(zip(PORTS, free_ports(len(PORTS)), strict=True)))
    site.clients.mkdir(mode=0o700)
    site.state.mkdir(mode=0o700)
    for name, content in (workspace or {}).items():
        (site.state / "policy").mkdir(exist_ok=True)
        (site.state / "policy" / name).write_bytes(content)
    words = ["init", "--trust-domain", DOMAIN, "--directory", str(site.state), "--host", "127.0.0.1"]
    for name, port in site.ports.items():
        words += [f"--{name}-port", str(port)]
    command(words)
    return site


def enlist(site: Site, nodes: int, roles: tuple[str, ...], *, certified: int = 0, tokens: int = 0) -> None:
    """A fleet of `nodes`; before `serving`. The first of them have certificates, or tokens, in `site.clients`."""
    words = ["-m", "benchmarks.fleet", str(site.config), str(site.clients)]
    words += ["--nodes", str(nodes), "--certified", str(certified), "--tokens", str(tokens)]
    for role in roles:
        words += ["--role", role]
    subprocess.run([sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, check=True)


@contextmanager
def serving(site: Site, entry: tuple[str, ...] = ("-m", "sallyport")) -> Iterator[Site]:
    """`sallyport serve`, ready; `entry` is what Python runs."""
    log = site.folder / "serve.log"
    words = [sys.executable, *entry, "serve", "--config", str(site.config)]
    with running(words, log) as process:
        wait_until(answers(f"http://127.0.0.1:{site.ports['health']}/readyz"), process, log)
        yield replace(site, pid=process.pid)


def command(words: list[str]) -> str:
    """One `sallyport` command; what it printed. Raises `RuntimeError` when it fails."""
    whole = [sys.executable, "-m", "sallyport", *words]
    done = subprocess.run(whole, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"sallyport {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout

"""A whole Sallyport on loopback, as a benchmark's subject: `sallyport init`, a fleet, `sallyport serve`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import ENVIRONMENT, ROOT, Subject, answers, running, wait_until
from deploy.demo.free_ports import free_ports
from foundation.client import ApiClient

DOMAIN = "bench.example"
MANY = 1 << 20
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

    @property
    def gateway(self) -> Subject:
        """What serves the data plane, while it does."""
        return Subject("Sallyport", self.ports["gateway"], (self.pid,))

    def metric(self, name: str) -> float:
        """What `/metrics` tells under this name, over all labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['health']}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    @property
    def operator(self) -> ApiClient:
        """The API as this machine's root reaches it."""
        return ApiClient(self.state / "sallyport.sock")

    def set(self, section: str, **settings: int | str | list[str]) -> None:
        """Write settings into sallyport.toml, over those that are there."""
        lines, header = self.config.read_text().splitlines(), f"[{section}]"
        if header not in lines:
            lines += ["", header]
        begin = lines.index(header) + 1
        end = next((i for i in range(begin, len(lines)) if lines[i].startswith("[")), len(lines))
        kept = [line for line in lines[begin:end] if line.partition("=")[0].strip() not in settings]
        written = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        self.config.write_text("\n".join([*lines[:begin], *written, *kept, *lines[end:]]) + "\n")


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
    _take_all_from_here(site)
    return site


def _take_all_from_here(site: Site) -> None:
    """A whole fleet comes from one address here, and the machine is used to the full by intent."""
    site.set("gateway.listener", source_handshakes=MANY, source_burst=MANY)
    site.set("gateway.overload", lag="2s")


def enlist(
    site: Site, nodes: int, roles: tuple[str, ...], *, certified: int = 0, tokens: int = 0, attesting: bool = False
) -> None:
    """A fleet of `nodes`; before `serving`. The first of them have certificates, or tokens, in `site.clients`; with
    `attesting` the AKs of those that have certificates lie there too."""
    words = ["-m", "benchmarks.fleet", str(site.config), str(site.clients)]
    words += ["--nodes", str(nodes), "--certified", str(certified), "--tokens", str(tokens)]
    words += ["--attesting"] if attesting else []
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
        try:
            yield replace(site, pid=process.pid)
        except Exception:
            print(f"the end of {log}:", *log.read_text().splitlines()[-10:], sep="\n", file=sys.stderr)
            raise


def command(words: list[str]) -> str:
    """One `sallyport` command; what it printed. Raises `RuntimeError` when it fails."""
    whole = [sys.executable, "-m", "sallyport", *words]
    done = subprocess.run(whole, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"sallyport {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout

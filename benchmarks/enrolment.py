"""Enrolment: how long a node waits for its certificate, and what that costs the server.

Every node has a TPM of its own, emulated by swtpm, made and booted beforehand. `enrol_seconds` is the whole command
`sallyport node enrol`, from the start of its process to its end: keys made, evidence quoted, certificate stored.
`enrol_server_cpu_ms` is what all threads of the serving process ran for one enrolment after another, less what they
run when nobody enrols.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.enrol import enrol
from agent.settings import Address, AgentSettings
from agent.store import NodeStore
from benchmarks.figure import Figure, at_most
from benchmarks.site import Site, command, enlist, initialise, serving
from benchmarks.usage import cpu_seconds
from deploy.demo.emulated_tpm import manufacture
from deploy.demo.tpm_maker import TpmMaker
from foundation.clock import SystemClock
from foundation.wire.enrolment import Token

COMMAND = "python -m benchmarks.run enrolment"
IDLE_SECONDS = 3.0
_LET_IN = """
[enrolment.rate]
burst = 10000
per_minute = 100000
"""


def figures(short: bool) -> Iterator[Figure]:
    timed, counted = (3, 10) if short else (7, 50)
    with tempfile.TemporaryDirectory(prefix="sallyport-bench-") as made:
        folder, maker = Path(made), TpmMaker.create()
        site = initialise(folder)
        _let_in(site, maker)
        enlist(site, timed + counted, ("edge-agent",), tokens=timed + counted)
        with serving(site) as served:
            seconds = statistics.median(_timed(served, maker, f"edge-{i}") for i in range(timed))
            cpu = _counted(served, maker, [f"edge-{timed + i}" for i in range(counted)])
    yield at_most("enrol_seconds", seconds, "s", 2.0, COMMAND)
    yield at_most("enrol_server_cpu_ms", cpu * 1000, "ms", 5.0, COMMAND)


def _let_in(site: Site, maker: TpmMaker) -> None:
    """Believe this maker, of emulated TPMs; take as many messages as come."""
    text, before, after = site.config.read_text(), 'classes = ["hardware"] ', 'classes = ["hardware", "virtual"] '
    if before not in text:
        raise RuntimeError(f"{site.config} has no {before!r}")
    site.config.write_text(text.replace(before, after) + _LET_IN)
    (site.state / "makers" / "virtual" / "maker.pem").write_bytes(maker.root_pem)


@contextmanager
def _node(site: Site, maker: TpmMaker, name: str) -> Iterator[AgentSettings]:
    """A node whose TPM is made and booted."""
    with manufacture(site.folder / "tpm" / name, maker) as tpm:
        folder, authority = site.folder / "node" / name, Address("localhost", site.ports["enrolment"])
        yield AgentSettings(directory=folder, authority=authority, tcti=tpm.tcti, event_log=tpm.event_log)


def _timed(site: Site, maker: TpmMaker, name: str) -> float:
    """Seconds that the command takes."""
    with _node(site, maker, name) as settings:
        words = ["node", "enrol", "--token-file", str(site.clients / f"{name}.token"), "--json"]
        words += ["--authority", str(settings.authority), "--directory", str(settings.directory)]
        words += ["--tcti", settings.tcti, "--event-log", str(settings.event_log)]
        began = time.monotonic()
        command(words)
        return time.monotonic() - began


def _counted(site: Site, maker: TpmMaker, names: list[str]) -> float:
    """Seconds of CPU that the server spends on one enrolment; the clients are in this process."""
    idle = _spent_idle(site)
    before, began = cpu_seconds(site.pid), time.monotonic()
    for name in names:
        with _node(site, maker, name) as settings:
            token = Token.parse((site.clients / f"{name}.token").read_text())
            asyncio.run(enrol(settings, token, NodeStore(settings.directory), SystemClock(), lambda line: None))
    spent, took = cpu_seconds(site.pid) - before, time.monotonic() - began
    return (spent - idle * took) / len(names)


def _spent_idle(site: Site) -> float:
    """Seconds of CPU a second when nobody enrols."""
    before, began = cpu_seconds(site.pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (cpu_seconds(site.pid) - before) / (time.monotonic() - began)

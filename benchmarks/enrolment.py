"""Enrolment: how long a node waits for its certificate, and what that costs the server.

Every node has a TPM of its own, emulated by swtpm, made and booted beforehand. `enrol_seconds` is the whole command
`sallyport node enrol`, from the start of its process to its end: keys made, evidence quoted, certificate stored.
`enrol_server_cpu_ms` is all that the serving processes ran, in their own code and in the kernel, while a queue of nodes
enrolled four at a time, divided by the nodes. Nothing is taken off: the heartbeats, polls and tickers of that while are
in it, and what follows an answer (gateways hear of it) too. `enrol_server_idle_ms_per_s` says what the same processes
run in a second when nobody enrols.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.enrol import enrol
from agent.settings import Address, AgentSettings
from agent.store import NodeStore
from benchmarks.figure import Figure, alone, at_most
from benchmarks.site import Site, command, enlist, initialise, serving
from benchmarks.usage import cpu
from deploy.demo.emulated_tpm import manufacture
from deploy.demo.tpm_maker import TpmMaker
from foundation.clock import SystemClock
from foundation.wire.enrolment import Token

COMMAND = "python -m benchmarks.run enrolment"
IDLE_SECONDS, SETTLE_SECONDS = 3.0, 0.2
AT_ONCE = 4
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
        let_in(site, maker)
        enlist(site, timed + counted, ("edge-agent",), tokens=timed + counted)
        with serving(site) as served:
            seconds = statistics.median(_timed(served, maker, f"edge-{i}") for i in range(timed))
            idle = _spent_idle(served)
            spent = _counted(served, maker, [f"edge-{timed + i}" for i in range(counted)])
    yield at_most("enrol_seconds", seconds, "s", 2.0, COMMAND)
    yield at_most("enrol_server_cpu_ms", spent * 1000, "ms", 5.0, COMMAND)
    yield alone("enrol_server_idle_ms_per_s", idle * 1000, "ms", COMMAND)


def let_in(site: Site, maker: TpmMaker) -> None:
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
    """Seconds of CPU that the server spends on one enrolment; the clients are in this process, their TPMs booted."""
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(_node(site, maker, name)) for name in names}
        before = cpu([site.pid])
        asyncio.run(_enrol_all(site, nodes))
        time.sleep(SETTLE_SECONDS)
        return cpu([site.pid]).since(before).total / len(names)


async def _enrol_all(site: Site, nodes: Mapping[str, AgentSettings]) -> None:
    free = asyncio.Semaphore(AT_ONCE)

    async def enrol_one(name: str, settings: AgentSettings) -> None:
        token = Token.parse((site.clients / f"{name}.token").read_text())
        async with free:
            await enrol(settings, token, NodeStore(settings.directory), SystemClock(), lambda line: None)

    async with asyncio.TaskGroup() as group:
        for name, settings in nodes.items():
            group.create_task(enrol_one(name, settings))


def _spent_idle(site: Site) -> float:
    """Seconds of CPU a second when nobody enrols."""
    before, began = cpu([site.pid]), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return cpu([site.pid]).since(before).total / (time.monotonic() - began)

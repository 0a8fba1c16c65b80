"""The agent: how much memory it holds, and how long it takes to be of use.

A node with an emulated TPM (swtpm) enrols; its agent keeps two tunnels, to the one gateway by two addresses, offers a
service, opens no port and supervises nothing. Memory is all that its process tree has resident (RSS), libraries too,
for on a node there is no other Python to share them with; it is read some seconds after both tunnels stand.
`agent_start_ms` is from the start of the process to `READY=1`, `agent_tunnels_ms` to both tunnels, for which the TPM
signs two handshakes; `agent_start_cpu_ms` is what its process ran until then.
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.configuration import RunSettings
from agent.control import ask
from benchmarks.enrolment import let_in
from benchmarks.figure import Figure, alone, at_most
from benchmarks.processes import running
from benchmarks.site import Site, command, enlist, initialise, serving
from benchmarks.usage import cpu, rss
from deploy.demo.emulated_tpm import EmulatedTpm, manufacture
from deploy.demo.tpm_maker import TpmMaker

COMMAND = "python -m benchmarks.run agent"
SETTLE_SECONDS, WAIT_SECONDS = 5.0, 30.0
_POLL = 0.01
_LOCAL = """
[agent.local]
socket = "{folder}/local.sock"
"""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of an agent: milliseconds to `READY=1` and to both tunnels, milliseconds of CPU to the latter, and its
    bytes of memory afterwards."""

    ready: float
    tunnels: float
    cpu: float
    memory: int


def figures(short: bool) -> Iterator[Figure]:
    times = 2 if short else 5
    with tempfile.TemporaryDirectory(prefix="sallyport-bench-") as made:
        folder, maker = Path(made), TpmMaker.create()
        site = initialise(folder)
        let_in(site, maker)
        enlist(site, 1, ("edge-agent",), tokens=1)
        with serving(site) as served, manufacture(folder / "tpm", maker) as tpm:
            _enrol(served, tpm)
            plain = [_start(served, tpm, "") for _ in range(times)]
            local = [_start(served, tpm, _LOCAL.format(folder=folder)) for _ in range(times)]
    memory, with_local = ([each.memory / 1e6 for each in starts] for starts in (plain, local))
    ready, tunnels, spent = ([getattr(each, name) for each in plain] for name in ("ready", "tunnels", "cpu"))
    yield at_most("agent_memory_mb", statistics.median(memory), "MB", 60, COMMAND, memory)
    yield at_most("agent_memory_local_mb", statistics.median(with_local), "MB", 90, COMMAND, with_local)
    yield alone("agent_start_ms", statistics.median(ready), "ms", COMMAND, ready)
    yield alone("agent_tunnels_ms", statistics.median(tunnels), "ms", COMMAND, tunnels)
    yield alone("agent_start_cpu_ms", statistics.median(spent), "ms", COMMAND, spent)


def _enrol(site: Site, tpm: EmulatedTpm) -> None:
    words = ["node", "enrol", "--token-file", str(site.clients / "edge-0.token"), "--json"]
    words += ["--authority", f"localhost:{site.ports['enrolment']}", "--directory", str(site.folder / "node")]
    command([*words, "--tcti", tpm.tcti, "--event-log", str(tpm.event_log)])


def _start(site: Site, tpm: EmulatedTpm, more: str) -> Start:
    """One start, with `more` settings."""
    config, gateway = site.folder / "agent.toml", site.ports["gateway"]
    config.write_text(
        f"""
[agent]
directory = "{site.folder / "node"}"
tcti = "{tpm.tcti}"
event_log = "{tpm.event_log}"
authority = "localhost:{site.ports["enrolment"]}"
renewal = "localhost:{site.ports["api"]}"
gateways = ["localhost:{gateway}", "127.0.0.1:{gateway}"]
[agent.offers]
web = "tcp://127.0.0.1:9"
[agent.firewall]
enabled = false
{more}"""
    )
    with _manager(site.folder / "notify") as manager:
        program = [sys.executable, "-m", "sallyport", "agent", "run", "--config", str(config)]
        log, began = site.folder / "agent.log", time.monotonic()
        with running(["env", f"NOTIFY_SOCKET={site.folder / 'notify'}", *program], log) as process:
            try:
                _wait_ready(manager)
                ready = time.monotonic()
                _wait_tunnels(config)
            except OSError:
                print(f"the end of {log}:", *log.read_text().splitlines()[-10:], sep="\n", file=sys.stderr)
                raise
            tunnels, spent = time.monotonic(), cpu([process.pid]).total
            time.sleep(SETTLE_SECONDS)
            memory = rss([process.pid])
            return Start((ready - began) * 1000, (tunnels - began) * 1000, spent * 1000, memory)


@contextmanager
def _manager(path: Path) -> Iterator[socket.socket]:
    """What stands for the service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(WAIT_SECONDS)
        try:
            yield manager
        finally:
            path.unlink()


def _wait_ready(manager: socket.socket) -> None:
    while b"READY=1" not in manager.recv(4096):
        pass


def _wait_tunnels(config: Path) -> None:
    """Ask the agent itself, on its socket: a command would take longer than what is measured."""
    control, until = RunSettings.load(config).node.control, time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        if all(tunnel["up"] for tunnel in ask(control)["tunnels"]):
            return
        time.sleep(_POLL)
    raise TimeoutError("the tunnels do not stand")

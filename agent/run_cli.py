"""`sallyport agent`: this machine's agent, running.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from agent.settings import DEFAULT_FILE
from foundation.faults import Fault
from foundation.reasons import Reason

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="The node's agent: tunnels, local ports, services.",
)


class LogLevel(StrEnum):
    """From which level on the log is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_Config = Annotated[Path, typer.Option("--config", help="TOML file with [agent].")]


@app.command()
def run(
    config: _Config = DEFAULT_FILE,
    enrol_token_file: Annotated[
        Path | None,
        typer.Option(help="Enrol by this token (mode 0600; - reads standard input) where there is none yet."),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="debug, info, warning or error.")] = LogLevel.INFO,
) -> None:
    """Be this node's agent until SIGTERM. SIGHUP reads gateways, ports and offers anew."""
    if enrol_token_file is not None:
        _enrol_once(config, enrol_token_file)
    _become_agent(config, log_level.value)


@app.command()
def status(
    config: _Config = DEFAULT_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Ask the running agent how its tunnels, ports and services stand."""
    from agent.configuration import RunSettings
    from agent.control import ask

    found = ask(RunSettings.load(config).node.control)
    sys.stdout.write(json.dumps(found) + "\n" if as_json else _text(found))


def _become_agent(config: Path, log_level: str) -> NoReturn:
    """Go on as `agent.process`, which says why, with the modules that this process finds and no others."""
    environment = {"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-P", "-m", "agent.process", str(config), log_level]
    os.execve(sys.executable, words, environment)  # noqa: S606  # our own interpreter, and no shell


def _enrol_once(config: Path, token_file: Path) -> None:
    """Enrol unless that was done."""
    from agent.configuration import RunSettings
    from agent.store import NodeStore
    from foundation.clock import SystemClock

    settings = RunSettings.load(config).node
    store = NodeStore(settings.directory, settings.pem)
    try:
        store.identity()
    except Fault as fault:
        if fault.reason is not Reason.NOT_ENROLLED:
            raise
        from agent.enrol import enrol
        from agent.token import read_token

        asyncio.run(enrol(settings, read_token(token_file), store, SystemClock(), lambda _step: None))


def _text(found: dict[str, Any]) -> str:
    lines = [f"node            {found['node']}"]
    lines += [f"{name:<15} {found[name]}" for name in ("attested_until", "floor", "bundle_age")]
    lines += [f"{name:<15} {value}" for name, value in found["certificate"].items()]
    for tunnel in found["tunnels"]:
        state = "up" if tunnel["up"] else f"down ({tunnel['fault'] or 'dialling'})"
        lines.append(f"tunnel          {tunnel['gateway']} {state}, {tunnel['streams']} streams")
    for port in found["ports"]:
        lines.append(f"port            {port['listen']} -> {port['route']} of {port['target']}, {port['open']} open")
    offers = found["offers"]
    lines.append(f"offers          {', '.join(offers['services']) or 'nothing'}, {offers['open']} open")
    return "\n".join(lines) + "\n"

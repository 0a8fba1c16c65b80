"""`sallyport node firewall`: print, set, show and remove the table that keeps nodes apart. A running agent sets it by
itself; these are for looking, and for machines without one.

Exit codes: 0 done; 1 refused or failed, or for `status`, the table is not as it should be; 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.settings import DEFAULT_FILE, AgentSettings, agent_section
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

if TYPE_CHECKING:
    from agent.firewall.settings import FirewallSettings
    from agent.firewall.wall import Wall

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="The table that keeps nodes apart: apply, status, remove.",
)
_Config = Annotated[Path | None, typer.Option("--config", help=f"TOML file with [agent]; {DEFAULT_FILE} if it exists.")]
_Directory = Annotated[Path | None, typer.Option(help="The node's files.")]
_Networks = Annotated[
    list[str] | None,
    typer.Option("--network", help="Where nodes live, instead of what the newest revision says; may be repeated."),
]


@app.callback(invoke_without_command=True)
def firewall(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the table as `nft -f` takes it; change nothing.")
    ] = False,
    network: _Networks = None,
    config: _Config = None,
    directory: _Directory = None,
) -> None:
    """The table that keeps nodes apart."""
    from agent.firewall.ruleset import ruleset
    from agent.firewall.text import text

    if context.invoked_subcommand is not None:
        return
    if not dry_run:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    typer.echo(text(ruleset(_wall(config, directory, network)[0])), nl=False)


@app.command()
def apply(network: _Networks = None, config: _Config = None, directory: _Directory = None) -> None:
    """Set the table, in one step, and keep for the agent what it should be."""
    from agent.firewall.keeper import enforce, keep
    from agent.firewall.nft import Nft

    wall, settings, folder = _wall(config, directory, network)
    found = asyncio.run(enforce(Nft(settings.nft), wall))
    keep(folder, wall)
    typer.echo(f"set: {'; '.join(found)}" if found else "it was as it should be")


@app.command()
def status(
    config: _Config = None,
    directory: _Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Say how the table stands beside what was last set, and what its rules have met."""
    document = asyncio.run(_document(*_read(config, directory)))
    sys.stdout.write(json.dumps(document) + "\n" if as_json else _lines(document))
    if document["standing"] == "drifted":
        raise typer.Exit(1)


@app.command()
def remove(config: _Config = None, directory: _Directory = None) -> None:
    """Remove the table: nodes may then reach each other. A running agent sets it again, unless it is switched off."""
    from agent.firewall.keeper import forget
    from agent.firewall.nft import Nft
    from agent.firewall.ruleset import removal

    settings, folder = _read(config, directory)
    asyncio.run(Nft(settings.nft).execute(removal()))
    forget(folder)
    typer.echo("removed")


def _read(config: Path | None, directory: Path | None) -> tuple[FirewallSettings, Path]:
    """The firewall's settings, and the node's folder."""
    from agent.firewall.settings import FirewallSettings

    path = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    section: Any = agent_section(path).get("firewall", {}) if path else {}
    fields = Fields(section, "agent.firewall", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    return FirewallSettings.parse(fields), directory or _node(path).directory


def _node(path: Path | None) -> AgentSettings:
    return AgentSettings.load(path) if path else AgentSettings()


def _wall(
    config: Path | None, directory: Path | None, network: list[str] | None
) -> tuple[Wall, FirewallSettings, Path]:
    """What should be: by what is named here, else by what was last set. Raises `Fault(FIREWALL_NETWORK)`."""
    from agent.firewall.keeper import Hosts, hosts_of, kept, resolved
    from agent.firewall.wall import Wall, parsed

    settings, folder = _read(config, directory)
    before = kept(folder)
    if not network and before is None and not settings.networks:
        raise Fault(Reason.FIREWALL_NETWORK, "no networks of nodes are known here: run the agent, or name them")
    nodes = parsed(network) if network else before.nodes if before is not None else ()
    hosts = hosts_of(_node(config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)))
    found = asyncio.run(Hosts(hosts, SystemClock(), resolved).addresses(()))
    reach = parsed(map(str, (*found, *(before.reach if before is not None else ()))))
    return Wall(parsed(map(str, (*nodes, *settings.networks))), reach, settings.allow), settings, folder


async def _document(settings: FirewallSettings, folder: Path) -> dict[str, Any]:
    from agent.firewall.drift import counts
    from agent.firewall.keeper import compared, kept
    from agent.firewall.nft import Nft
    from agent.firewall.wall import Wall

    wall, nft = kept(folder), Nft(settings.nft)
    listed = await nft.listed() if wall is None else None
    found: tuple[str, ...] = ()
    if wall is not None:
        listed, found = await compared(nft, wall)
    standing = "drifted" if found else "off" if listed is None else "in_force"
    return {
        "standing": standing,
        "differences": list(found),
        **(wall or Wall()).to_json(),
        "rules": [
            {"chain": each.chain, "rule": each.rule, "packets": each.packets, "bytes": each.bytes}
            for each in counts(listed or ())
        ],
    }


def _lines(document: dict[str, Any]) -> str:
    lines = [document["standing"].replace("_", " "), *(f"  {each}" for each in document["differences"])]
    for name in ("nodes", "reach", "allow"):
        lines.append(f"{name}: {', '.join(document[name]) or 'none'}")
    for each in document["rules"]:
        lines.append(f"{each['packets']:>12} packets {each['bytes']:>14} bytes  {each['chain']}: {each['rule']}")
    return "\n".join(lines) + "\n"

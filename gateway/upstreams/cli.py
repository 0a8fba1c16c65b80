"""`sallyport upstream`: the pools that routes lead to, as this gateway sees them.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foundation.client import ApiClient, path_of
from foundation.connect import connected

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_out = Console(highlight=False)
_COLOURS = {"in_service": "green", "ejected": "yellow", "unhealthy": "red"}


@app.command("list")
@connected
def list_command(client: ApiClient, as_json: _AsJson = False) -> None:
    """Pools, their addresses, how each stands in each worker, and why one is out of service."""
    document = client.get(path_of("v1", "upstreams"))
    if as_json:
        _out.print_json(data=document)
        return
    for pool in document["items"]:
        _out.print(_heading(pool), soft_wrap=True)
        for address in pool["addresses"]:
            _out.print(_line(address), soft_wrap=True)


@app.command("keys")
@connected
def keys_command(client: ApiClient) -> None:
    """The JWK set with which an upstream verifies x-sallyport-assertion."""
    _out.print_json(data=client.get(path_of("v1", "assertions", "keys")))


def _heading(pool: Mapping[str, Any]) -> Text:
    text = Text(pool["pool"], style="bold")
    if pool["panicking"]:
        text.append("  too few in service: all addresses are used", style="red")
    if pool["lookup_failure"]:
        text.append(f"  DNS: {pool['lookup_failure']}", style="red")
    counted = ", ".join(f"{name} {pool[name]}" for name in ("ejections", "retries") if pool[name])
    return text.append(f"  {counted}" if counted else "", style="dim")


def _line(address: Mapping[str, Any]) -> Text:
    text = Text(f"  {address['address']:<28} ")
    states: Mapping[str, int] = address["states"]
    told = "" if len(states) == 1 else f" in {{}} of {sum(states.values())} workers"
    for number, (state, workers) in enumerate(sorted(states.items())):
        text.append(", " if number else "")
        text.append(f"{state}{told.format(workers)}", style=_COLOURS.get(state, ""))
    text.append(f"  {address['active']} under way, {address['connections']} connections", style="dim")
    if address["why"]:
        text.append(f"  {address['why']}")
    if address["back_in_seconds"]:
        text.append(f", back in {address['back_in_seconds']:g} s")
    return text

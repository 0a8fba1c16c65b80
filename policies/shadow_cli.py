"""`sallyport policy shadow`: try a candidate revision beside the one in force, on the decisions of every day.

Exit codes as of `sallyport policy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from foundation.client import ApiClient
from foundation.connect import connected
from foundation.files import read_bounded
from policies.archive import MAX_ARCHIVE_BYTES

shadow = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
_out = Console(highlight=False)
_PATH = "/v1/policy/shadow"
_SHOWN = 10

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@shadow.callback()
def try_candidate() -> None:
    """Try a candidate revision beside the one in force: asked the same, enforced nowhere."""


@shadow.command("start")
@connected
def start(
    client: ApiClient,
    archive: Annotated[Path, typer.Argument(help="A signed archive.", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Hand a signed revision to this gateway, to be asked what is asked of the one in force."""
    _show(
        json.loads(client.send("POST", _PATH, read_bounded(archive, MAX_ARCHIVE_BYTES), "application/octet-stream")),
        as_json,
    )


@shadow.command("status")
@connected
def status(client: ApiClient, as_json: AsJson = False) -> None:
    """Say how the candidate's answers differ, by route and kind."""
    _show(client.get(_PATH), as_json)


@shadow.command("stop")
@connected
def stop(client: ApiClient, as_json: AsJson = False) -> None:
    """Stop trying the candidate. What was found stays, until another is tried."""
    _show(json.loads(client.send("DELETE", _PATH)), as_json)


def shadow_view(found: Mapping[str, Any]) -> RenderableType:
    """What was found, the most frequent difference first. Nothing in it is read as markup."""
    state = Text("running", "green") if found["running"] else Text("not running", "dim")
    if "revision" not in found:
        return Text.assemble(state, "  no candidate was tried")
    counts = {name: found.get(name, 0) for name in ("seen", "compared", "dropped", "different")}
    head = Text.assemble(state, f"  candidate: revision {found['revision']}")
    about = Text("{compared} of {seen} decisions compared, {dropped} dropped".format(**counts), "dim")
    verdict = Text(f"{counts['different']} answered otherwise", "bold red" if counts["different"] else "bold green")
    parts: list[RenderableType] = [head, about, verdict]
    if found.get("differences"):
        parts.append(_table(("route", "kind", "count"), found["differences"]))
    if found.get("records"):
        parts += [Text("the newest of them (`sallyport explain` tells of each)", "bold"), _records(found["records"])]
    return Group(*parts)


def _records(records: list[Mapping[str, Any]]) -> Table:
    rows = [
        {
            "decision": record["decision"],
            "route": record["route"],
            "before": ", ".join(record["before"]["reasons"]),
            "after": ", ".join(record["after"]["reasons"]),
        }
        for record in records[: -_SHOWN - 1 : -1]
    ]
    return _table(("decision", "route", "before", "after"), rows)


def _table(names: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=True)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(row[name])) for name in names))
    return table


def _show(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _out.print(shadow_view(found), soft_wrap=True)

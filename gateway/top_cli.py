"""`sallyport top`: a gateway as it works, over the operators' API, which decides by policy who may look."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live as Screen
from rich.text import Text

from foundation.client import ApiClient
from foundation.connect import connected
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.live import Live
from gateway.top import top_view

top = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_out = Console(highlight=False)
_PATH = "/v1/gateway/live"
_FIXED_LINES = 14  # of the view, beside routes and reasons


@top.command()
@connected
def top_command(
    client: ApiClient,
    interval: Annotated[float, typer.Option(min=0.2, max=3600.0, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one look as JSON, and end.")] = False,
) -> None:
    """Watch a gateway: what it knows and how old that is, rates by route, refusals by reason, streams and cuts."""
    if as_json:
        _out.print_json(json.dumps(client.get(_PATH)))
        return
    before = _look(client)
    if once:
        time.sleep(interval)
        _out.print(top_view(_look(client), before))
        return
    try:
        _watch(client, before, interval)
    except KeyboardInterrupt:
        return


def _watch(client: ApiClient, before: Live, interval: float) -> None:
    """Look again and again, on the whole screen. A gateway that does not answer is waited for."""
    with Screen(top_view(before, None, rows=_rows()), console=_out, screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(interval)
            try:
                now = _look(client)
            except Fault as fault:
                screen.update(Text(f"! {fault}", "bold red"), refresh=True)
                continue
            screen.update(top_view(now, before, rows=_rows()), refresh=True)
            before = now


def _look(client: ApiClient) -> Live:
    return Live.parse(Fields(client.get(_PATH), "live", Reason.MESSAGE_MALFORMED))


def _rows() -> int:
    """How many routes and reasons each fit on the screen."""
    return max(3, (_out.size.height - _FIXED_LINES) // 2)

"""`sallyport reload` and `upgrade`: ask the running server, wait for what comes of it, and say it.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from foundation.client import ApiClient
from foundation.connect import connected
from foundation.faults import Fault
from foundation.reasons import Reason

PROCESS, RELOAD, UPGRADE = (f"/v1/gateway/{name}" for name in ("process", "reload", "upgrade"))
LOOK_EVERY = 0.1  # seconds
reload = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
upgrade = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_Within = Annotated[float, typer.Option(min=1.0, max=3600.0, help="Seconds to wait for the outcome.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_out = Console(highlight=False)
_Told = Mapping[str, Any]  # what GET /v1/gateway/process answers


@reload.command()
@connected
def reload_command(
    client: ApiClient,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what it would take up, or why it would not.")
    ] = False,
    within: _Within = 180.0,
    as_json: _AsJson = False,
) -> None:
    """Have the running server read certificate, root, policy key and settings anew; no request is lost.

    New settings are served by new workers once all of them are ready. What is refused changes nothing of the settings.
    `sallyport doctor` judges settings without a server.
    """
    if check:
        _say(client.get(RELOAD), "would take up", as_json)
        return
    begun = json.loads(client.send("POST", RELOAD))
    told = _until(client, lambda now: _is_another(now, begun) or _errand(now, begun)["progress"] == "done", within)
    if _is_another(told, begun):
        _say({"taken": ["everything"]}, "taken up", as_json)  # it was replaced meanwhile, and read all anew
        return
    errand = _errand(told, begun)
    if errand["taken"] or not errand["problem"]:
        _say(errand, "taken up", as_json)
    _raise_problem(errand)


@upgrade.command()
@connected
def upgrade_command(
    client: ApiClient,
    within: _Within = 180.0,
    drain: Annotated[
        float, typer.Option(min=0.0, max=86400.0, help="Seconds to wait for the workers of before to end.")
    ] = 10.0,
    as_json: _AsJson = False,
) -> None:
    """Have the running server go on with the code that is installed now; no request is lost.

    Its process ID stays. New workers take over once every one of them holds the whole present state; what those before
    them carry may go on for `[gateway] retire`. Code that does not start is refused, and the old serves on.
    """
    begun = json.loads(client.send("POST", UPGRADE))
    told = _until(client, lambda now: _is_another(now, begun) or bool(_errand(now, begun)["problem"]), within)
    if not _is_another(told, begun):
        _raise_problem(_errand(told, begun))
    if told["pid"] != begun["pid"]:
        detail = f"process {begun['pid']} ended, and process {told['pid']} was started: connections were lost"
        raise Fault(Reason.NEW_CODE_REFUSED, detail)
    told = _until(client, lambda now: not now["workers"]["retiring"], drain, or_last=told)
    if as_json:
        _out.print_json(data=told)
        return
    workers = told["workers"]
    _out.print(f"upgraded      {begun['version']} → {told['version']}, process {told['pid']}", soft_wrap=True)
    _out.print(f"workers       {workers['ready']} of {workers['wanted']} carry the new code", soft_wrap=True)
    if workers["retiring"]:
        _out.print(f"of before     {workers['retiring']} let end what they carry, for `[gateway] retire` at most")


def _say(document: _Told, how: str, as_json: bool) -> None:
    if as_json:
        _out.print_json(data=document)
        return
    for each in document["taken"] or ("nothing: all is as it was",):
        _out.print(f"{how:<14}{each}", soft_wrap=True)


def _raise_problem(errand: _Told) -> None:
    """Raises the `Fault` that it was refused with, where it was."""
    if errand["problem"]:
        problem = errand["problem"]
        raise Fault(Reason.from_code(problem["reason"]), problem.get("detail", ""), field=problem.get("field", ""))


def _is_another(now: _Told, begun: _Told) -> bool:
    return bool(now["instance"] != begun["instance"])


def _errand(now: _Told, begun: _Told) -> _Told:
    """Raises `Fault(NOT_FOUND)` when so many came since that ours is not kept any more."""
    errands: Iterable[_Told] = now["errands"]
    for each in errands:
        if each["number"] == begun["number"]:
            return each
    raise Fault(Reason.NOT_FOUND, "the server keeps only the last outcomes", field=f"errand {begun['number']}")


def _until(client: ApiClient, done: Callable[[_Told], bool], within: float, or_last: _Told | None = None) -> _Told:
    """Look until it is `done`; while it is being replaced, it does not answer. After `within` seconds, what was seen
    last where `or_last` was given; raises `Fault(SERVER_UNREACHABLE)` otherwise."""
    until, last = time.monotonic() + within, or_last
    while True:
        unreachable = None
        try:
            now: _Told = client.get(PROCESS)
        except Fault as fault:
            if fault.reason is not Reason.SERVER_UNREACHABLE:
                raise
            unreachable = fault
        else:
            if done(now):
                return now
            last = now if or_last else None
        if time.monotonic() >= until:
            if last is not None:
                return last
            raise unreachable or Fault(Reason.SERVER_UNREACHABLE, f"it is not done after {within:g} s, and goes on")
        time.sleep(LOOK_EVERY)

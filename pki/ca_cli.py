"""`sallyport ca`: what is done with the root's key, where that is.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foundation.clock import SystemClock
from foundation.files import read_secret
from pki.settings import DEFAULT_FOLDER

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="The certificate authority's own keys.")
_out = Console(highlight=False, markup=False)


@app.callback()
def _group() -> None:
    """The certificate authority's own keys."""


@app.command("renew")
def renew_command(
    folder: Annotated[
        Path, typer.Option(help="root.pem, root.crl and issuing.pem: the authority's folder, or a copy of the three.")
    ] = Path(DEFAULT_FOLDER),
    root_key: Annotated[Path | None, typer.Option(help="The root's key; otherwise root.key in the folder.")] = None,
    root_passphrase: Annotated[
        Path | None, typer.Option(help="What opens it; otherwise root.passphrase in the folder.")
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(help="Make a new issuing key too, as issuing.key, closed by the passphrase in this file (0600)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Renew the issuing CA's certificate by the root's key; the issuing key stays. Needs no authority and no network:
    run it where the root's key is, carry issuing.pem and root.crl back, and restart `sallyport serve`."""
    from pki.issuing_ca import RootKey, renew_issuing  # noqa: PLC0415  # `--help` needs none of it

    root = RootKey(root_key or folder / "root.key", root_passphrase or folder / "root.passphrase")
    passphrase = None if new_key is None else read_secret(new_key).strip()
    issuing = asyncio.run(renew_issuing(folder, root, int(SystemClock().now()), passphrase))
    until = issuing.not_valid_after_utc
    if as_json:
        answer = {"serial": format(issuing.serial_number, "x"), "not_after": int(until.timestamp())}
        _out.print_json(json.dumps(answer))
        return
    _out.print(f"issuing CA    until {until:%Y-%m-%d %H:%M} UTC", soft_wrap=True)
    _out.print(f"written       {folder / 'issuing.pem'}, {folder / 'root.crl'}", soft_wrap=True)
    if new_key is not None:
        _out.print(f"and           {folder / 'issuing.key'}: it goes with them", soft_wrap=True)
    _out.print("next          put both into the authority's folder, restart `sallyport serve`", soft_wrap=True)

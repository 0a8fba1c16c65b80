"""`sallyport operator`: certificates of the people who operate. The key is made here and never leaves this machine.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from foundation.client import ApiClient, path_of
from foundation.connect import connected
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import KeyPair

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Operators' certificates: issue, renew.")

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@app.callback()
def _group() -> None:
    """Operators' certificates."""


@app.command("issue")
@connected
def issue_command(
    client: ApiClient,
    name: Annotated[str, typer.Argument(help="The operator's name; the inventory has it.")],
    out_key: Annotated[Path, typer.Option(help="A file for the key (0600), made here.")],
    out_cert: Annotated[Path, typer.Option(help="A file for the certificate with its issuing CA, PEM.")],
    replace: Annotated[bool, typer.Option(help="Replace these files where they exist.")] = False,
    as_json: AsJson = False,
) -> None:
    """Issue an operator's certificate: who may, acts as that operator. Expect the operator first (inventory add --kind
    operator)."""
    for file in (out_key, out_cert):
        if file.exists() and not replace:
            raise Fault(Reason.CONFLICT, "it exists; --replace replaces it", field=str(file))
    path = path_of("v1", "inventory", "operator", name, "certify")
    _certify(client, path, KeyPair(out_cert, out_key), as_json)


@app.command("renew")
@connected
def renew_command(
    client: ApiClient,
    out_key: Annotated[Path | None, typer.Option(help="A file for the new key; otherwise --key is replaced.")] = None,
    out_cert: Annotated[
        Path | None, typer.Option(help="A file for the new certificate; otherwise --cert is replaced.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Renew your own certificate by the one that still holds, with a new key: give --server, --cert, --key and --ca.
    Only the newest one of an operator renews."""
    if client.pair is None:
        detail = "an operator renews by its own certificate, over --server; over the socket: sallyport operator issue"
        raise Fault(Reason.SETTING_INVALID, detail, field="server")
    pair = KeyPair(out_cert or client.pair.certificate, out_key or client.pair.key)
    _certify(client, path_of("v1", "self", "certificate"), pair, as_json)


def _certify(client: ApiClient, path: str, pair: KeyPair, as_json: bool) -> None:
    from pki.pending_pair import PendingPair  # noqa: PLC0415  # `--help` needs no cryptography

    pending = PendingPair.open(pair)
    answer: dict[str, Any] = client.post(path, {"csr": base64.b64encode(pending.request()).decode()})
    until = pending.keep(answer["pem"].encode())
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(f"{answer['identity']} until {until:%Y-%m-%d %H:%M} UTC: {pair.certificate}, {pair.key}")

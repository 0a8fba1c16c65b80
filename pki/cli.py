"""`sallyport inventory`, `token` and `cert`.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import csv
import datetime
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from foundation.client import ApiClient, path_of
from foundation.connect import connected
from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.files import write_secret
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import State
from foundation.reasons import Reason
from foundation.wire.health import Standing
from foundation.wire.records import RecordKind
from pki.revocation_reason import RevocationReason

inventory = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Who belongs to the fleet.")
token = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Enrolment tokens.")
cert = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Certificates.")
_out = Console(highlight=False, markup=False)
_err = Console(stderr=True, highlight=False, markup=False)
MAX_IMPORT_BYTES = 8 * 1024 * 1024

Name = Annotated[str, typer.Argument(help="The identity's name.")]
OfKind = Annotated[Kind, typer.Option(help="What the identity is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Why = Annotated[RevocationReason, typer.Option("--reason", help="Why (RFC 5280 §5.3.1).")]
Note = Annotated[str, typer.Option(help="A note for the audit log.")]
Roles = Annotated[list[str] | None, typer.Option("--role", help="A role; may be given again.")]
Tier = Annotated[int | None, typer.Option(min=0, max=3, help="The capability class of a node.")]
Place = Annotated[str | None, typer.Option(help="Where it belongs.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="key=value; may be given again.")]


class _Columns(StrEnum):
    """Which fields of a listing go into its table."""

    INVENTORY = "name kind state attestation verdict tier site segment roles"
    TOKENS = "token_id identity state expires_at minted_by"
    CERTIFICATES = "serial identity profile step not_after"
    HEALTH = "name standing ailments received_at"
    RECORDS = "number received_at kind body"


@inventory.command("list")
@connected
def list_inventory(
    client: ApiClient,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.")] = None,
    state: Annotated[State | None, typer.Option(help="Only this state.")] = None,
    tier: Tier = None,
    region: Place = None,
    site: Place = None,
    segment: Place = None,
    as_json: AsJson = False,
) -> None:
    """List the fleet."""
    wanted = {"kind": kind, "state": state, "tier": tier, "region": region, "site": site, "segment": segment}
    _list(client, "/v1/inventory", _Columns.INVENTORY, as_json, **wanted)


@inventory.command("show")
@connected
def show_inventory(client: ApiClient, name: Name, kind: OfKind = Kind.NODE, as_json: AsJson = False) -> None:
    """Show one identity."""
    _show(client.get(_entry(kind, name)), as_json)


@inventory.command("add")
@connected
def add_inventory(
    client: ApiClient,
    name: Name,
    kind: OfKind = Kind.NODE,
    role: Roles = None,
    tier: Tier = None,
    region: Place = None,
    site: Place = None,
    segment: Place = None,
    label: Labels = None,
    ek_sha256: Annotated[str | None, typer.Option(help="SHA-256 (hex) of its EK: it enrols without a token.")] = None,
    as_json: AsJson = False,
) -> None:
    """Expect an identity."""
    given = _description(role, tier, region, site, segment, label)
    if ek_sha256:
        given["ek_sha256"] = ek_sha256
    _show(client.post(_place(kind, "inventory", "identities"), {"name": name, "kind": kind.value, **given}), as_json)


@inventory.command("import")
@connected
def import_inventory(
    client: ApiClient,
    file: Annotated[Path, typer.Argument(help="JSON (a list of objects) or CSV (with a header); - reads JSON.")],
    as_json: AsJson = False,
) -> None:
    """Expect many identities, or, when one of them cannot be, none."""
    entries = _read_entries(file)
    with _err.status(f"importing {len(entries)} identities"):
        answer = client.post("/v1/inventory/import", {"entries": entries})
    _say(answer, f"{answer['added']} identities are expected now", as_json)


@inventory.command("update")
@connected
def update_inventory(
    client: ApiClient,
    name: Name,
    kind: OfKind = Kind.NODE,
    role: Roles = None,
    tier: Tier = None,
    region: Place = None,
    site: Place = None,
    segment: Place = None,
    label: Labels = None,
    as_json: AsJson = False,
) -> None:
    """Change roles, tier, place or labels; what is given replaces what was there."""
    _show(client.patch(_entry(kind, name), _description(role, tier, region, site, segment, label)), as_json)


@inventory.command("quarantine")
@connected
def quarantine(
    client: ApiClient, name: Name, kind: OfKind = Kind.NODE, note: Note = "", as_json: AsJson = False
) -> None:
    """Shut an identity out until it is released."""
    _show(client.post(_entry(kind, name, "quarantine"), {"note": note}), as_json)


@inventory.command("release")
@connected
def release(client: ApiClient, name: Name, kind: OfKind = Kind.NODE, note: Note = "", as_json: AsJson = False) -> None:
    """End a quarantine."""
    _show(client.post(_entry(kind, name, "release"), {"note": note}), as_json)


@inventory.command("clear-failure")
@connected
def clear_failure(client: ApiClient, name: Name, kind: OfKind = Kind.NODE, as_json: AsJson = False) -> None:
    """The node was inspected: its failed attestation is over."""
    _show(client.post(_entry(kind, name, "clear-failure")), as_json)


@inventory.command("revoke")
@connected
def revoke_identity(
    client: ApiClient,
    name: Name,
    kind: OfKind = Kind.NODE,
    reason: Why = RevocationReason.UNSPECIFIED,
    as_json: AsJson = False,
) -> None:
    """Withdraw trust from an identity and all its certificates."""
    answer = client.post(_entry(kind, name, "revoke"), {"reason": reason.value})
    count = len(answer["revocations"])
    _say(answer, f"{name} is revoked ({count} revocations)" if count else f"{name} was revoked already", as_json)
    _tell_reach(answer["gateways"])


@inventory.command("admit")
@connected
def admit(client: ApiClient, name: Name, kind: OfKind = Kind.NODE, as_json: AsJson = False) -> None:
    """Let a revoked identity enrol again; its old certificates stay revoked."""
    _show(client.post(_entry(kind, name, "admit")), as_json)


@inventory.command("retire")
@connected
def retire(client: ApiClient, name: Name, kind: OfKind = Kind.NODE, as_json: AsJson = False) -> None:
    """Revoke an identity for good and part it from its TPM."""
    answer = client.post(_entry(kind, name, "retire"))
    _say(answer, f"{name} is retired", as_json)
    _tell_reach(answer["gateways"])


@inventory.command("health")
@connected
def show_health(
    client: ApiClient,
    name: Annotated[str, typer.Argument(help="A node's name; all active nodes without it.")] = "",
    standing: Annotated[Standing | None, typer.Option(help="Only those that stand so.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how nodes are, by their own newest reports: well, ailing, silent (overdue), or unknown (never heard)."""
    if name:
        _show(client.get(path_of("v1", "inventory", Kind.NODE.value, name, "health")), as_json)
    else:
        _list(client, "/v1/health", _Columns.HEALTH, as_json, standing=standing.value if standing else "")


@inventory.command("records")
@connected
def list_records(
    client: ApiClient,
    name: Name,
    kind: Annotated[RecordKind | None, typer.Option(help="Only this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a node noted while it was cut off: its own decisions, what its agent did, its health."""
    path = path_of("v1", "inventory", Kind.NODE.value, name, "records")
    _list(client, path, _Columns.RECORDS, as_json, kind=kind.value if kind else "")


@token.command("create")
@connected
def create_token(
    client: ApiClient,
    name: Name,
    kind: OfKind = Kind.NODE,
    ttl: Annotated[str, typer.Option(help="How long it may be used: 30m, 1h, 7d.")] = "1h",
    output: Annotated[Path | None, typer.Option(help="Write it to this file (0600) instead of showing it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Mint a token for one enrolment of one identity."""
    answer = client.post(_place(kind, "tokens", "identities", "tokens"), {"name": name, "kind": kind.value, "ttl": ttl})
    if output is not None:
        write_secret(output, f"{answer['token']}\n".encode())
        answer["token"] = ""
        _say(answer, f"token for {name} in {output}", as_json)
        return
    _err.print(f"token for {name}, once, within {ttl}:")
    _say(answer, answer["token"], as_json)


@token.command("list")
@connected
def list_tokens(client: ApiClient, as_json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    _list(client, "/v1/tokens", _Columns.TOKENS, as_json)


@token.command("void")
@connected
def void_tokens(client: ApiClient, name: Name, kind: OfKind = Kind.NODE, as_json: AsJson = False) -> None:
    """Make every unspent token of an identity useless."""
    answer = client.post("/v1/tokens/void", {"name": name, "kind": kind.value})
    _say(answer, f"{answer['voided']} tokens are void", as_json)


@cert.command("list")
@connected
def list_certificates(
    client: ApiClient,
    identity: Annotated[str, typer.Option(help="Only those of this SPIFFE ID.")] = "",
    as_json: AsJson = False,
) -> None:
    """List certificates."""
    if identity:
        SpiffeId.parse(identity)
    _list(client, "/v1/certificates", _Columns.CERTIFICATES, as_json, identity=identity)


@cert.command("show")
@connected
def show_certificate(
    client: ApiClient,
    serial: Annotated[str, typer.Argument(help="The serial, in hex.")],
    pem: Annotated[bool, typer.Option("--pem", help="Only the certificate, in PEM.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one certificate."""
    answer = client.get(path_of("v1", "certificates", serial))
    if pem:
        typer.echo(answer["pem"], nl=False)
        return
    _show(answer, as_json)


@cert.command("revoke")
@connected
def revoke_certificate(
    client: ApiClient,
    serial: Annotated[str, typer.Argument(help="The serial, in hex.")],
    reason: Why = RevocationReason.UNSPECIFIED,
    as_json: AsJson = False,
) -> None:
    """Revoke one certificate."""
    answer = client.post(path_of("v1", "certificates", serial, "revoke"), {"reason": reason.value})
    _say(answer, f"certificate {serial} of {answer['id']} is revoked", as_json)
    _tell_reach(answer["gateways"])


@cert.command("withdraw-issuer")
@connected
def withdraw_issuer(
    client: ApiClient,
    key_identifier: Annotated[str, typer.Argument(help="The subject key identifier of the CA's certificate, in hex.")],
    as_json: AsJson = False,
) -> None:
    """Withdraw an issuing CA with everything that it signed, on every gateway, for good."""
    answer = client.post(path_of("v1", "ca", key_identifier, "withdraw"), {})
    _say(answer, f"what the CA {key_identifier} signed is let in nowhere", as_json)
    _tell_reach(answer["gateways"])


@cert.command("chain")
@connected
def chain(client: ApiClient) -> None:
    """Issuing CA and root, in PEM."""
    typer.echo(client.send("GET", "/v1/ca/chain").decode(), nl=False)


@cert.command("crl")
@connected
def crl(client: ApiClient, output: Annotated[Path, typer.Argument(help="A file for the CRL, in DER.")]) -> None:
    """Fetch the issuing CA's CRL."""
    output.write_bytes(client.send("GET", "/v1/ca/crl"))


def _tell_reach(gateways: dict[str, Any]) -> None:
    """On standard error, which gateways may still let it pass, and what to do about them."""
    for each in gateways["unacknowledged"]:
        heard = "not heard from" if each["heard"] is None else f"last heard at {_instant(each['heard'])}"
        _err.print(f"not in force yet at {each['id']}: {heard}, has revocation {each['number']}", soft_wrap=True)
    if gateways["unacknowledged"]:
        _err.print(
            "what to do: restore its link to the authority; until then it lets pass what it knows, as long as "
            "[gateway.staleness] there allows. Is it stolen or gone? sallyport inventory revoke NAME --kind gateway",
            soft_wrap=True,
        )


def _place(kind: Kind, of_nodes: str, *of_others: str) -> str:
    """Nodes and other identities come in by different doors, for different roles hold them."""
    return path_of("v1", *((of_nodes,) if kind is Kind.NODE else of_others))


def _entry(kind: Kind, name: str, *act: str) -> str:
    return path_of("v1", "inventory", kind.value, name, *act)


def _description(
    role: list[str] | None,
    tier: int | None,
    region: str | None,
    site: str | None,
    segment: str | None,
    label: list[str] | None,
) -> dict[str, Any]:
    labels = None if label is None else dict(_pair(each) for each in label)
    given = {"roles": role, "tier": tier, "region": region, "site": site, "segment": segment, "labels": labels}
    return {name: value for name, value in given.items() if value is not None}


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} is not key=value", param_hint="--label")
    return key, value


def _read_entries(file: Path) -> list[Any]:
    try:
        raw = sys.stdin.buffer.read(MAX_IMPORT_BYTES + 1) if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(file)) from error
    if len(raw) > MAX_IMPORT_BYTES:
        raise Fault(Reason.MESSAGE_TOO_LARGE, f"at most {MAX_IMPORT_BYTES} bytes", field=str(file))
    if file.suffix == ".csv":
        return [_row(line, f"{file}:{number}") for number, line in enumerate(_csv(raw, file), 2)]
    entries = strict_json(raw, str(file), Reason.MESSAGE_MALFORMED)
    if not isinstance(entries, list):
        raise Fault(Reason.MESSAGE_MALFORMED, "expected a list of objects", field=str(file))
    return entries


def _csv(raw: bytes, file: Path) -> list[dict[str | Any, str | Any]]:
    try:
        return list(csv.DictReader(raw.decode("utf-8").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Fault(Reason.MESSAGE_MALFORMED, f"not CSV in UTF-8: {error}", field=str(file)) from error


def _row(line: dict[str | Any, str | Any], where: str) -> dict[str, Any]:
    """An entry of a CSV row: `roles` are separated by spaces, `labels` are key=value separated by spaces."""
    if None in line or None in line.values():
        raise Fault(Reason.MESSAGE_MALFORMED, "the row has more or fewer fields than the header", field=where)
    entry: dict[str, Any] = {name: text for name, text in line.items() if text}
    fields = Fields(entry, where, Reason.MESSAGE_MALFORMED)
    if "roles" in entry:
        entry["roles"] = entry["roles"].split()
    if "labels" in entry:
        entry["labels"] = dict(_pair(each) for each in entry["labels"].split())
    if "tier" in entry:
        if not (entry["tier"].isascii() and entry["tier"].isdigit()):
            raise fields.fault("tier", "expected a whole number")
        entry["tier"] = int(entry["tier"])
    return entry


def _list(client: ApiClient, path: str, columns: _Columns, as_json: bool, **query: object) -> None:
    items = list(client.pages(path, **query))
    if as_json:
        typer.echo(json.dumps(items, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in columns.split():
        table.add_column(name, overflow="fold")
    for item in items:
        table.add_row(*(_cell(name, item[name]) for name in columns.split()))
    _out.print(table)
    _err.print(f"{len(items)} in all")


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in document.items():
        if value not in ("", [], {}):
            table.add_row(name, _cell(name, value))
    _out.print(table)


def _say(document: dict[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(document, indent=2) if as_json else sentence)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items())
    if name.endswith(("_at", "_until", "not_after", "not_before")) and isinstance(value, int | float):
        return _instant(value)
    return str(value)


def _instant(seconds: float) -> str:
    if not 0 < seconds < 1 << 36:
        return "never" if seconds == 0 else str(seconds)
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).isoformat().replace("+00:00", "Z")

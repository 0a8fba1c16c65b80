"""`sallyport audit`: verify the log, and give it away.

Exit codes: 0 it verifies, or is written; 1 it does not verify, or cannot be read; 2 the command line is wrong.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.console import Console

from foundation.audit.export import MAX_EXPORT_LINE, export, verify_export
from foundation.audit.key import PUBLIC_SUFFIX, read_public_key
from foundation.audit.records import MAX_LINE_BYTES, TreeHead
from foundation.audit.settings import AuditSettings
from foundation.audit.verify import Report, verify
from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.reasons import Reason

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
_told = Console(stderr=True)

Directory = Annotated[Path | None, typer.Option(help="The log's folder; otherwise the one that the settings name.")]
Config = Annotated[Path, typer.Option(help="The settings.")]
PublicKey = Annotated[
    Path | None, typer.Option(help="The log's public key (PEM): your own copy proves more than the one beside the log.")
]
Since = Annotated[
    Path | None, typer.Option(help="A head exported earlier: the log must be an extension of it. Proves most of all.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
_CONFIG = Path("sallyport.toml")


@app.command("verify")
def verify_command(
    exported: Annotated[Path | None, typer.Argument(help="An export to verify instead of the log.")] = None,
    directory: Directory = None,
    config: Config = _CONFIG,
    public_key: PublicKey = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Verify the whole log: every record against the signed heads. Exit code 1 when it was tampered with."""
    settings = _settings(directory, config)
    key = read_public_key(public_key or _beside(settings))
    known = _read_head(since)
    with _told.status("verifying the audit log"):
        if exported is None:
            report = _read(lambda: verify(settings.directory, key, known))
        else:
            report = _read(lambda: _verify_file(exported, key, known))
    _tell(report, as_json)
    raise typer.Exit(0 if report.ok else 1)


@app.command("export")
def export_command(
    output: Annotated[Path | None, typer.Option(help="A file to write; otherwise standard output.")] = None,
    first: Annotated[int, typer.Option(min=0, help="The index of the first record.")] = 0,
    head: Annotated[bool, typer.Option("--head", help="Only the newest signed head, for --since later.")] = False,
    directory: Directory = None,
    config: Config = _CONFIG,
    public_key: PublicKey = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Write the log as NDJSON with proofs, after verifying it. It is JSON always; --json changes nothing."""
    settings = _settings(directory, config)
    key = read_public_key(public_key or _beside(settings))
    known = _read_head(since)
    lines = (
        [_verified_head(settings, key, known)] if head else export(settings.directory, key, first=first, since=known)
    )
    if output is None:
        sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()
        return
    with output.open("wb") as file:
        file.writelines(lines)


def _settings(directory: Path | None, config: Path) -> AuditSettings:
    if directory is not None:
        return AuditSettings(directory=directory)
    if config == _CONFIG and not config.exists():
        return AuditSettings()
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "", field=str(config)) from error
    except ValueError as error:
        raise Fault(Reason.SETTING_INVALID, str(error), field=str(config)) from error
    fields = Fields(document, "", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    return AuditSettings.parse(fields.section("audit", optional=True))


def _beside(settings: AuditSettings) -> Path:
    return settings.key_path.with_name(settings.key_path.name + PUBLIC_SUFFIX)


def _read_head(path: Path | None) -> TreeHead | None:
    """The head in a file: what `export --head` wrote, or a whole export, whose first line holds one."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "", field=str(path)) from error
    value = strict_json(line, str(path), Reason.FILE_UNREADABLE)
    return TreeHead.read(Fields(value, str(path), Reason.FILE_UNREADABLE).section("head"))


def _read(check: Callable[[], Report]) -> Report:
    try:
        return check()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "", field=str(error.filename)) from error


def _verify_file(path: Path, key: Ed25519PublicKey, since: TreeHead | None) -> Report:
    with path.open("rb") as file:
        return verify_export(iter(lambda: file.readline(MAX_EXPORT_LINE + 1), b""), key, since)


def _verified_head(settings: AuditSettings, key: Ed25519PublicKey, since: TreeHead | None) -> bytes:
    report = _read(lambda: verify(settings.directory, key, since))
    if report.head is None or not report.ok:
        raise Fault(Reason.AUDIT_TAMPERED, report.problem)
    return report.head.encode() + b"\n"


def _tell(report: Report, as_json: bool) -> None:
    console = Console()
    if as_json:
        head = report.head.to_json() if report.head else None
        answer = {"ok": report.ok, "size": report.size, "problem": report.problem, "torn_bytes": report.torn_bytes}
        console.print_json(json.dumps({**answer, "head": head}))
    elif report.ok and report.head:
        console.print(f"the audit log verifies: {report.size} records, signed at {report.head.time}", highlight=False)
        console.print(f"root {report.head.root.hex()}", highlight=False, soft_wrap=True)
    else:
        console.print(f"the audit log does not verify: {report.problem}", highlight=False, markup=False)
        console.print(f"{report.size} records before that hold", highlight=False)

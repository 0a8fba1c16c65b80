"""`sallyport policy`: check, test, build, show, publish, export; `shadow` is `policies.shadow_cli`'s.

Exit codes: 0 done; 1 refused, with every fault at file and line on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foundation.client import ApiClient
from foundation.clock import SystemClock
from foundation.connect import connected
from foundation.faults import Fault, problem
from foundation.files import read_bounded, write_atomic
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from policies.archive import MAX_ARCHIVE_BYTES
from policies.explain import instant
from policies.export import PORTS, SEGMENT_LABEL, Format, Gateways, export
from policies.lifecycle.checking import TestReport, check, ending_grants, require_tests, run_tests
from policies.lifecycle.revision import LoadedRevision, build, verify
from policies.lifecycle.workspace import Workspace, WorkspaceInvalid, read_workspace
from policies.present import faults_view, revision_view, tests_view
from policies.settings import CompileSettings
from policies.shadow_cli import shadow
from policies.signing import load_signing_key, parse_verifying_key

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)
_OCTETS = "application/octet-stream"
_SOON = 14 * 86_400  # grants that end within these seconds are worth a word

Folder = Annotated[Path, typer.Argument(help="The policy workspace.", file_okay=False)]
Production = Annotated[bool, typer.Option("--production", help="Refuse routes that take less than a hardware TPM.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Opa = Annotated[str, typer.Option("--opa", help="The opa binary.")]


app.add_typer(shadow, name="shadow")


@app.callback()
def policy() -> None:
    """The policy workspace: check, test, build, publish, export."""


@app.command("check")
def check_workspace(
    workspace: Folder = Path("policy"), production: Production = False, as_json: AsJson = False, opa: Opa = "opa"
) -> None:
    """Read the workspace, compile it, and hold it against the schemas. All faults are told in one go."""
    with _telling(as_json):
        found = _read(workspace, production)
        with _progress(as_json, "compiling"):
            check(found, CompileSettings(opa=opa))
        ending = ending_grants(found, SystemClock().now() + _SOON)
        counts = {"routes": len(found.routes), "files": len(found.rego), "ending": [grant for grant, _ in ending]}
        if as_json:
            _print_json({"ok": True, **counts})
            return
        _out.print(Text.assemble(("ok", "green"), f"  {counts['routes']} routes, {counts['files']} Rego files"))
        for grant, expires in ending:
            _out.print(Text(f"note: grant {grant} ends at {instant(expires)}", "yellow"))


@app.command("test")
def run_workspace_tests(
    workspace: Folder = Path("policy"),
    coverage: Annotated[float, typer.Option(min=0, max=100, help="Percent of lines that tests must cover.")] = 100.0,
    as_json: AsJson = False,
    opa: Opa = "opa",
) -> None:
    """Run the tests of the workspace and of the policy it stands on."""
    with _telling(as_json):
        found = _read(workspace, production=False)
        with _progress(as_json, "testing"):
            report = run_tests(found, CompileSettings(opa=opa))
        _show(as_json, lambda: _test_document(report), lambda: _out.print(tests_view(report), soft_wrap=True))
        _require(report, coverage, as_json)


@app.command("build")
def build_revision(
    workspace: Folder = Path("policy"),
    *,
    number: Annotated[int, typer.Option(min=1, help="The revision's number: above every one before.")],
    key: Annotated[Path, typer.Option(help="The policy signing key, as `sallyport init` made it.")],
    out: Annotated[Path, typer.Option(help="Where the signed archive goes.")],
    coverage: Annotated[float, typer.Option(min=0, max=100, help="Percent of lines that tests must cover.")] = 100.0,
    production: Production = False,
    as_json: AsJson = False,
    opa: Opa = "opa",
) -> None:
    """Check, test, build and sign a revision."""
    with _telling(as_json):
        signing_key, settings = load_signing_key(key), CompileSettings(opa=opa)
        found = _read(workspace, production)
        with _progress(as_json, "building"):
            check(found, settings)
            require_tests(run_tests(found, settings), coverage)
            revision = build(found, number, int(SystemClock().now()), settings)
        archive = revision.signed(signing_key)
        _write(out, archive)
        document = {"number": number, "digest": revision.digest, "archive": str(out), "bytes": len(archive)}
        _show(as_json, lambda: document, lambda: _out.print(f"revision {number}  {revision.digest}\n{out}"))


@app.command("publish")
@connected
def publish_revision(
    client: ApiClient,
    archive: Annotated[Path, typer.Argument(help="A signed archive.", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Hand a signed revision to the authority: every gateway verifies it and enforces it."""
    with _telling(as_json):
        published = client.send("POST", "/v1/policy/revisions", read_bounded(archive, MAX_ARCHIVE_BYTES), _OCTETS)
        if as_json:
            _print_json(json.loads(published))
            return
        _out.print(Text.assemble(("published", "green"), f"  revision {json.loads(published)['revision']}"))


@app.command("show")
def show_revision(
    archive: Annotated[Path, typer.Argument(help="A signed archive.", dir_okay=False)],
    *,
    key: Annotated[Path, typer.Option(help="The policy's public key, in PEM.")],
    as_json: AsJson = False,
) -> None:
    """Verify an archive and say what is in it."""
    with _telling(as_json):
        revision = verify(
            read_bounded(archive, MAX_ARCHIVE_BYTES), parse_verifying_key(read_bounded(key, 8192)), floor=0
        )
        _show(
            as_json, lambda: _revision_document(revision), lambda: _out.print(revision_view(revision), soft_wrap=True)
        )


@app.command("export")
def export_segments(
    workspace: Folder = Path("policy"),
    *,
    form: Annotated[Format, typer.Option("--format", help="Whose network policy.")],
    gateway: Annotated[
        list[str] | None, typer.Option(help="Address or CIDR block of a gateway or the authority; may be repeated.")
    ] = None,
    gateway_label: Annotated[
        list[str] | None, typer.Option(help="key=value that gateways' pods bear; may be repeated.")
    ] = None,
    gateway_namespace: Annotated[str, typer.Option(help="The namespace of those pods.")] = "",
    port: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65535, help=f"Instead of {', '.join(map(str, PORTS))}; may be repeated."),
    ] = None,
    segment_label: Annotated[str, typer.Option(help="The label by which pods name their segment.")] = SEGMENT_LABEL,
) -> None:
    """Print the segments as network policy: nothing in, and nothing out but to the gateways and DNS."""
    with _telling(as_json=False):
        where = Gateways.parse(gateway or (), gateway_label or (), gateway_namespace, port or PORTS)
        rows = _read(workspace, production=False).data["workspace"]
        typer.echo(export(rows, where, form, segment_label), nl=False)


def _read(folder: Path, production: bool) -> Workspace:
    return read_workspace(folder, AttestationClass.HARDWARE if production else AttestationClass.NONE)


def _require(report: TestReport, coverage: float, as_json: bool) -> None:
    """As `require_tests`; the report has been printed, so with JSON only the exit code is left to say it."""
    try:
        require_tests(report, coverage)
    except Fault as fault:
        if not as_json:
            _err.print(faults_view([fault]), soft_wrap=True)
        raise typer.Exit(1) from None


def _test_document(report: TestReport) -> dict[str, Any]:
    tests = [{"name": test.name, "where": test.where, "outcome": test.outcome} for test in report.tests]
    return {"tests": tests, "coverage": round(report.coverage, 1), "uncovered": list(report.uncovered)}


def _revision_document(revision: LoadedRevision) -> dict[str, Any]:
    return {
        "number": revision.number,
        "digest": revision.digest,
        "created": revision.created,
        "policy": revision.compiled.digest,
        "routes": [route.name for route in revision.routes],
        "reads": [".".join(path) for path in revision.compiled.reads],
    }


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be written", field=str(path)) from error


@contextmanager
def _telling(as_json: bool) -> Iterator[None]:
    """Every fault told, all of a workspace's at once, then exit code 1."""
    try:
        yield
    except Fault as fault:
        faults = fault.faults if isinstance(fault, WorkspaceInvalid) else (fault,)
        if as_json:
            _print_json({"ok": False, "faults": [problem(each) for each in faults]})
        else:
            _err.print(faults_view(faults), soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def _progress(as_json: bool, what: str) -> Iterator[None]:
    """A sign of life on a terminal."""
    if as_json or not _err.is_terminal:
        yield
        return
    with _err.status(what):
        yield


def _show(as_json: bool, document: Callable[[], Any], view: Callable[[], None]) -> None:
    if as_json:
        _print_json(document())
    else:
        view()


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))

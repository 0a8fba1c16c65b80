"""`sallyport access`: who can reach what, and why, answered by the compiled policy.

With --workspace of a draft, offline, with identities from a file or from the command line; without, of the revision
that a gateway enforces and the identities that it knows. Exit codes as of `sallyport policy`; a denial is an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress

from foundation.client import ApiClient, path_of
from foundation.clock import SystemClock
from foundation.connect import connectable
from foundation.faults import Fault
from foundation.files import read_bounded
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from policies.access import identities as from_file
from policies.access.asking import Policy, Subject, Tick
from policies.access.loaded import loaded
from policies.access.present import what_view, who_view
from policies.access.telling import Asked, what_document, who_document, why_explanation
from policies.compile import compile_policy
from policies.explain import Explanation
from policies.lifecycle.workspace import WorkspaceInvalid, read_workspace
from policies.present import explanation_view, faults_view
from policies.settings import CompileSettings, PolicySettings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)
MAX_QUESTIONS = 2_000_000

Connect = Callable[[], ApiClient]
Route = Annotated[str, typer.Argument(help="The route's name; api.<area>.<verb> for our own API.")]
Identity = Annotated[str, typer.Argument(help="The identity's name, or its SPIFFE ID.")]
OfKind = Annotated[Kind, typer.Option(help="What the identity is.")]
Folder = Annotated[Path | None, typer.Option("--workspace", help="Ask a draft: the policy workspace.", file_okay=False)]
Known = Annotated[
    Path | None,
    typer.Option("--identities", help="With --workspace: what `inventory list --json` prints.", dir_okay=False),
]
Roles = Annotated[list[str] | None, typer.Option("--role", help="Of a draft: a role that it holds. May be repeated.")]
Tier = Annotated[int | None, typer.Option(min=0, max=3, help="Of a draft: the tier of a node.")]
Place = Annotated[str, typer.Option(help="Of a draft: where it belongs.")]
Class = Annotated[AttestationClass | None, typer.Option(help="Of a draft: what proved it; hardware for a node.")]
Method = Annotated[str, typer.Option(help="This method; UPGRADE for what opens a channel.")]
RequestPath = Annotated[str, typer.Option("--path", help="This path, decoded.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="Of a draft: key=value. May be repeated.")]
To = Annotated[str, typer.Option(help="Of a stream: the node that it leads to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Opa = Annotated[str, typer.Option("--opa", help="The opa binary, for a draft.")]


@app.callback()
def access() -> None:
    """Who can reach what, and why, answered by the compiled policy: a draft's, or the one that is enforced."""


@app.command("who-can-reach")
@connectable
def who_can_reach(
    connect: Connect,
    route: Route,
    workspace: Folder = None,
    identities: Known = None,
    as_json: AsJson = False,
    opa: Opa = "opa",
) -> None:
    """Say who can reach a route: classes of identity, and identities, by which grant and until when."""
    with _telling(as_json):
        if workspace is None:
            found = connect().get(path_of("v1", "access", "routes", route))
        else:
            subjects = _read(identities)
            with _draft(workspace, opa) as (policy, now), _progress(as_json, len(subjects)) as tick:
                found = who_document(policy, route, subjects, now, MAX_QUESTIONS, tick)
        _show(found, as_json, who_view)


@app.command("what-can-reach")
@connectable
def what_can_reach(
    connect: Connect,
    identity: Identity,
    kind: OfKind = Kind.NODE,
    workspace: Folder = None,
    identities: Known = None,
    role: Roles = None,
    tier: Tier = None,
    segment: Place = "",
    site: Place = "",
    region: Place = "",
    label: Labels = None,
    attestation: Class = None,
    as_json: AsJson = False,
    opa: Opa = "opa",
) -> None:
    """Say what an identity can reach: routes, methods and paths, by which grant and until when."""
    with _telling(as_json):
        if workspace is None:
            found = connect().get(_identity_path(kind, identity))
        else:
            others = _read(identities)
            place = {"segment": segment, "site": site, "region": region}
            subject = _subject(others, kind, identity, role, tier, attestation, place, label)
            with _draft(workspace, opa) as (policy, now), _progress(as_json, len(policy.routes)) as tick:
                found = what_document(policy, subject, others, now, MAX_QUESTIONS, tick)
        _show(found, as_json, what_view)


@app.command("why")
@connectable
def why(
    connect: Connect,
    identity: Identity,
    route: Route,
    method: Method = "",
    path: RequestPath = "",
    to: To = "",
    kind: OfKind = Kind.NODE,
    workspace: Folder = None,
    identities: Known = None,
    role: Roles = None,
    tier: Tier = None,
    segment: Place = "",
    site: Place = "",
    region: Place = "",
    label: Labels = None,
    attestation: Class = None,
    as_json: AsJson = False,
    opa: Opa = "opa",
) -> None:
    """Say why an identity may or may not use a route: the rule or grant, and the grants that come near."""
    with _telling(as_json):
        if workspace is None:
            found = connect().get(
                f"{_identity_path(kind, identity)}{path_of('routes', route)}", method=method, path=path, to=to
            )
            explained = Explanation.from_json(found)
        else:
            others = _read(identities)
            place = {"segment": segment, "site": site, "region": region}
            subject = _subject(others, kind, identity, role, tier, attestation, place, label)
            with _draft(workspace, opa) as (policy, now):
                explained = why_explanation(policy, subject, others, route, Asked(method, path, to), now)
        _show(explained.to_json(), as_json, lambda _: explanation_view(explained))


def _identity_path(kind: Kind, identity: str) -> str:
    named = SpiffeId.parse(identity) if identity.startswith("spiffe:") else None
    pair = (kind.value, identity) if named is None else (named.kind.value, named.name)
    return path_of("v1", "access", "identities", *pair)


def _read(path: Path | None) -> tuple[Subject, ...]:
    return () if path is None else from_file.read_identities(read_bounded(path, from_file.MAX_BYTES))


def _subject(
    others: tuple[Subject, ...],
    kind: Kind,
    name: str,
    roles: list[str] | None,
    tier: int | None,
    attestation: AttestationClass | None,
    place: dict[str, str],
    labels: list[str] | None,
) -> Subject:
    """The identity as described on the command line, or where nothing is described there, as the file has it."""
    if others and not any((*place.values(), roles, tier, attestation, labels)):
        return from_file.found_among(others, kind, name)
    tier = (1 if kind is Kind.NODE else 0) if tier is None else tier
    identity = SpiffeId.parse(name) if name.startswith("spiffe:") else SpiffeId(from_file.DOMAIN, kind, name)
    found = dict(_label(text) for text in labels or ())
    record = IdentityRecord(
        identity, State.ACTIVE, 0, tuple(roles or ()), tier, place["region"], place["site"], place["segment"], found
    )
    return Subject(record, Posture(attestation or from_file.default_attestation(kind), Verdict.PASSED))


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise Fault(Reason.MESSAGE_MALFORMED, f"{text[:64]!r} is no label: expected key=value", field="--label")
    return key, value


@contextmanager
def _draft(folder: Path, opa: str) -> Iterator[tuple[Policy, int]]:
    """The workspace's policy, ready to be asked, and the time it is asked at."""
    settings = PolicySettings(compile=CompileSettings(opa=opa))
    found = read_workspace(folder)
    with loaded(compile_policy(found.rego, found.data, settings.compile), 0, settings) as policy:
        yield policy, int(SystemClock().now())


@contextmanager
def _progress(as_json: bool, steps: int) -> Iterator[Tick]:
    """A sign of life on a terminal."""
    with Progress(console=_err, transient=True, disable=as_json or not _err.is_terminal) as progress:
        task = progress.add_task("asking", total=steps or None)

        def tick(count: int) -> bool:
            progress.advance(task, count)
            return True

        yield tick


@contextmanager
def _telling(as_json: bool) -> Iterator[None]:
    """Every fault told, all of a workspace's at once, then exit code 1."""
    try:
        yield
    except WorkspaceInvalid as fault:
        if not as_json:
            _err.print(faults_view(fault.faults), soft_wrap=True)
            raise typer.Exit(1) from None
        raise


def _show(found: Any, as_json: bool, view: Callable[[Any], RenderableType]) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _out.print(view(found), soft_wrap=True)

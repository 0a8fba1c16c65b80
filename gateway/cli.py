"""`sallyport init`, `join`, `recover`, `serve`, `explain` and `doctor`.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from foundation.client import ApiClient, path_of
from foundation.connect import connected
from foundation.faults import Fault
from foundation.files import make_private_folder, write_atomic
from foundation.identifiers import check_name
from foundation.logs import configure_logging
from foundation.reasons import Reason
from gateway.configuration import FILE_NAME, GATEWAY_TEMPLATE, TEMPLATE, Role, read_configuration
from gateway.doctor import examine
from policies.explain import Explanation
from policies.present import explanation_view

_Config = Annotated[Path, typer.Option("--config", help="The settings.", dir_okay=False)]
DEFAULT_DIRECTORY = Path("/var/lib/sallyport")
DEFAULT_CONFIG = DEFAULT_DIRECTORY / FILE_NAME
STARTER_CONTROL_PLANE = "http://127.0.0.1:2379"  # as in policies/starter/routes.yaml

init = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
recover = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
join = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
serve = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
explain = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
doctor = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_out, _err = Console(highlight=False), Console(stderr=True, highlight=False)


@init.command()
def init_command(
    trust_domain: Annotated[str, typer.Option(help="The name of your fleet's trust, such as fleet.example.")],
    directory: Annotated[Path, typer.Option(help="Where everything is kept.")] = DEFAULT_DIRECTORY,
    host: Annotated[str, typer.Option(help="The address that the listeners listen on.")] = "0.0.0.0",  # noqa: S104
    server_name: Annotated[list[str] | None, typer.Option(help="A name or address that clients reach us by.")] = None,
    control_plane: Annotated[str, typer.Option(help="What the gateway protects, as http://host:port.")] = "",
    gateway_port: Annotated[int, typer.Option(help="The gateway.")] = 8443,
    enrolment_port: Annotated[int, typer.Option(help="Enrolment.")] = 8444,
    api_port: Annotated[int, typer.Option(help="The API of operators and of renewal.")] = 8445,
    health_port: Annotated[int, typer.Option(help="Health and metrics, on loopback.")] = 9440,
) -> None:
    """Make an authority and a commented sallyport.toml; then `sallyport serve`."""
    from gateway.wiring.settings import Settings  # noqa: PLC0415  # `--help` needs none of it
    from gateway.wiring.site import initialise_all  # noqa: PLC0415

    directory = directory.resolve()
    make_private_folder(directory)
    path = directory / FILE_NAME
    names = ["localhost", "127.0.0.1", "::1", *(server_name or [])]
    text = TEMPLATE.format(
        path=path,
        trust_domain=trust_domain,
        state=directory,
        host=host,
        server_names="[" + ", ".join(f'"{name}"' for name in dict.fromkeys(names)) + "]",
        gateway_port=gateway_port,
        enrolment_port=enrolment_port,
        api_port=api_port,
        health_port=health_port,
    )
    if not path.exists():
        write_atomic(path, text.encode())
    for folder in ("makers/hardware", "makers/virtual"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    workspace = directory / "policy"
    if not workspace.exists():
        shutil.copytree(_starter(), workspace)
        if control_plane:
            routes = workspace / "routes.yaml"
            routes.write_text(routes.read_text("utf-8").replace(STARTER_CONTROL_PLANE, control_plane), "utf-8")
    made = asyncio.run(initialise_all(Settings.parse(read_configuration(path)), workspace))
    _out.print(f"authority made for [bold]{trust_domain}[/bold] in {made.folder}")
    _out.print(f"root SHA-256  {made.root_sha256.hex()}", soft_wrap=True)
    _out.print(f"settings      {path}", soft_wrap=True)
    _out.print(f"policy        {workspace} (revision 1 is published)", soft_wrap=True)
    _out.print(f"operator      {made.operator}, certificate for 24 hours in {made.folder}/operator.pem", soft_wrap=True)
    _out.print(
        "Take root.key and root.passphrase off this machine; nothing needs them until the issuing CA is renewed."
    )
    _out.print(f"next          sallyport serve --config {path}", soft_wrap=True)


@join.command()
def join_command(
    name: Annotated[str, typer.Argument(help="This gateway's name in the authority's inventory.")],
    trust_domain: Annotated[str, typer.Option(help="The authority's trust domain.")],
    enrolment: Annotated[str, typer.Option(help="The authority's enrolment listener, host:port.")],
    api: Annotated[str, typer.Option(help="The authority's API, host:port.")],
    policy_key: Annotated[
        Path, typer.Option(help="The policy signing key's public half: policy.pub of the authority.")
    ],
    token_file: Annotated[Path, typer.Option(help="A token of the kind gateway, mode 0600.")],
    directory: Annotated[Path, typer.Option(help="Where everything is kept.")] = DEFAULT_DIRECTORY,
    host: Annotated[str, typer.Option(help="The address that the listeners listen on.")] = "0.0.0.0",  # noqa: S104
    gateway_port: Annotated[int, typer.Option(help="The gateway.")] = 8443,
    api_port: Annotated[int, typer.Option(help="The API of this gateway's operators.")] = 8445,
    health_port: Annotated[int, typer.Option(help="Health and metrics, on loopback.")] = 9440,
) -> None:
    """Make this machine a gateway of an authority elsewhere; then `sallyport serve`."""
    from gateway.joining import Joining  # noqa: PLC0415  # `--help` needs none of it
    from gateway.joining import join as join_authority  # noqa: PLC0415
    from gateway.wiring.settings import Settings  # noqa: PLC0415

    directory = directory.resolve()
    make_private_folder(directory)
    path = directory / FILE_NAME
    text = GATEWAY_TEMPLATE.format(
        path=path,
        trust_domain=trust_domain,
        state=directory,
        name=check_name(name),
        host=host,
        authority_api=api,
        authority_enrolment=enrolment,
        gateway_port=gateway_port,
        api_port=api_port,
        health_port=health_port,
    )
    if not path.exists():
        write_atomic(path, text.encode())
    public = _read_public(policy_key)
    write_atomic(directory / "policy.pub", public)
    settings = Settings.parse(read_configuration(path))
    identity = asyncio.run(join_authority(Joining(path, settings.system, settings.audit, public, token_file)))
    _out.print(f"joined        {identity}", soft_wrap=True)
    _out.print(f"settings      {path}", soft_wrap=True)
    _out.print(f"next          sallyport serve --config {path}", soft_wrap=True)


@recover.command()
def recover_command(
    facts: Annotated[
        list[Path] | None,
        typer.Option("--facts", help="What a gateway kept (`facts` in its state folder); repeatable."),
    ] = None,
    config: _Config = DEFAULT_CONFIG,
) -> None:
    """Make a restored authority safe to serve: after its backup was put back, before `sallyport serve`."""
    from gateway.wiring.settings import Settings  # noqa: PLC0415  # `--help` needs none of it
    from gateway.wiring.site import recover as recover_authority  # noqa: PLC0415

    merged = asyncio.run(recover_authority(Settings.parse(read_configuration(config)), facts or ()))
    _out.print(f"recovered     numbers and epochs are raised, tokens are void, {merged} revocations are put back")


@serve.command()
def serve_command(
    config: _Config = DEFAULT_CONFIG,
    role: Annotated[Role | None, typer.Option(help="Which part to run; by default what the settings say.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only judge code and settings, and end.")] = False,
) -> None:
    """Run authority and gateway, or one of them, until SIGTERM or SIGINT; what is under way is let end.

    `sallyport reload`, or SIGHUP, has it read certificate, policy key and settings anew; `sallyport upgrade`, or
    SIGUSR2, go on with the code that is installed now.
    """
    import uvloop  # noqa: PLC0415  # only a server needs it

    import gateway.worker  # noqa: PLC0415  # a check is of all that a start would run
    from gateway.errands import Errands  # noqa: PLC0415
    from gateway.handover import Handover, take_over  # noqa: PLC0415
    from gateway.orchestrator import Orchestrator  # noqa: PLC0415  # `--help` needs none of it
    from gateway.wiring.settings import Settings  # noqa: PLC0415

    settings = Settings.parse(read_configuration(config), role)
    if check:
        _out.print(f"{gateway.worker.__name__} and {config} are good", soft_wrap=True)
        return
    configure_logging(settings.plane.telemetry.log_level)
    left = take_over()

    async def run() -> Handover | None:
        errands = Errands()
        errands.listen_to_signals()
        return await Orchestrator(settings, left).run(errands)

    try:
        following = uvloop.run(run())
    except BaseExceptionGroup as failures:
        raise _first_fault(failures) from failures
    if following is not None:
        following.execute()


@explain.command()
@connected
def explain_command(
    client: ApiClient,
    decision: Annotated[str, typer.Argument(help="The decision's ID: in every refusal, and in x-sallyport-decision.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why a request was allowed or denied: the rule, the facts, the grants that came near. What a node decided by
    itself is told at its authority, as the node's word."""
    document = client.get(path_of("v1", "decisions", decision))
    if as_json:
        _out.print_json(data=document)
        return
    _out.print(explanation_view(Explanation.from_json(document)), soft_wrap=True)


@doctor.command()
def doctor_command(
    config: _Config = DEFAULT_CONFIG, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Say what is wrong with this machine or configuration, and what to do. Exit code 1 when something is bad."""
    from gateway.wiring.settings import Settings  # noqa: PLC0415  # `--help` needs none of it

    findings = examine(config, Settings.parse)
    if as_json:
        _out.print_json(data=[asdict(finding) for finding in findings])
    else:
        for finding in findings:
            colour = {"good": "green", "warning": "yellow", "bad": "red"}[finding.grade]
            _out.print(
                Text.assemble((f"{finding.grade:>8}", colour), f"  {finding.check}: {finding.detail}"), soft_wrap=True
            )
            if finding.remedy:
                _out.print(Text(f"          → {finding.remedy}"), soft_wrap=True)
    if any(finding.grade == "bad" for finding in findings):
        raise typer.Exit(1)


def _first_fault(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell of a group: the first fault in it, or the group itself."""
    found: BaseException | None = failures.subgroup(Fault)
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found or failures


def _read_public(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error


def _starter() -> Path:
    import policies  # noqa: PLC0415  # where the package's content lies

    folder = Path(next(iter(policies.__path__))) / "starter"
    if not folder.is_dir():
        raise Fault(Reason.FILE_UNREADABLE, "the starter workspace is not installed", field=str(folder))
    return folder

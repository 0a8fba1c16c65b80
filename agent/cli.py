"""`sallyport node`: this machine as a node.

What only one command needs, cryptography first of all, is imported when that command runs: help costs little, and so
does mounting this beside others.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.firewall.cli import app as firewall_app
from agent.settings import DEFAULT_FILE, Address, AgentSettings
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.reasons import Reason

if TYPE_CHECKING:
    from agent.call import Call
    from agent.store import Identity, NodeStore

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="This machine as a node: enrol, renew, attest, status, health, call, firewall.",
)
app.add_typer(firewall_app, name="firewall")

_Config = Annotated[Path | None, typer.Option("--config", help=f"TOML file with [agent]; {DEFAULT_FILE} if it exists.")]
_Directory = Annotated[Path | None, typer.Option(help="The node's files.")]
_Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
_Authority = Annotated[str, typer.Option(help="The enrolment listener, host:port.")]
_Renewal = Annotated[str, typer.Option(help="The authority's API, host:port.")]
_Gateway = Annotated[str, typer.Option(help="The gateway, host:port.")]
_Tcti = Annotated[str, typer.Option(help="Where the TPM is, as tpm2-tools' -T takes it.")]


@app.command()
def enrol(
    token_file: Annotated[Path, typer.Option(help="File with the token, mode 0600; - reads standard input.")],
    authority: _Authority = "",
    node: Annotated[str, typer.Option(help="The name asked for; the token may fix it.")] = "",
    key: Annotated[str, typer.Option(help="`tpm`, or `software` where the authority allows nodes without one.")] = "",
    tcti: _Tcti = "",
    event_log: Annotated[Path | None, typer.Option(help="The firmware's measured-boot log.")] = None,
    config: _Config = None,
    directory: _Directory = None,
    as_json: _Json = False,
) -> None:
    """Prove this machine by its TPM and get a certificate whose key lives in it. A lost answer is asked for again."""
    from agent.enrol import enrol as enrol_node
    from agent.token import read_token

    with _failing_clearly():
        settings = _settings(config, directory, authority=authority, tcti=tcti, event_log=event_log)
        if key:
            settings = replace(settings, attestation={"tpm": "tpm", "software": "none"}.get(key) or _wrong_key(key))
        settings = replace(settings, node=node or settings.node)
        store = _store(settings)
        token = read_token(token_file)
        with _progress(quiet=as_json) as report:
            identity = asyncio.run(enrol_node(settings, token, store, SystemClock(), report))
        _show(identity, as_json, {"enrolled": True})


@app.command()
def renew(
    if_due: Annotated[bool, typer.Option("--if-due", help="Only when the authority asked for it by now.")] = False,
    renewal: _Renewal = "",
    tcti: _Tcti = "",
    config: _Config = None,
    directory: _Directory = None,
    as_json: _Json = False,
) -> None:
    """Get a new certificate for a new key by a fresh quote."""
    from agent.renew import is_due
    from agent.renew import renew as renew_node

    with _failing_clearly():
        settings = _settings(config, directory, renewal=renewal, tcti=tcti)
        store, clock = _store(settings), SystemClock()
        identity = store.identity()
        store.write_pem(identity)  # a run that was stopped may have left the ones before
        due = not if_due or is_due(identity, clock) or store.pending() is not None
        if due:
            with _progress(quiet=as_json) as report:
                identity = asyncio.run(renew_node(settings, store, clock, report))
        _show(identity, as_json, {"renewed": due})


@app.command()
def attest(
    renewal: _Renewal = "",
    tcti: _Tcti = "",
    measurements: Annotated[Path | None, typer.Option(help="The kernel's runtime measurement log.")] = None,
    config: _Config = None,
    directory: _Directory = None,
    as_json: _Json = False,
) -> None:
    """Prove once, by a fresh quote, what this machine booted and runs. `agent run` does so all the time."""
    from agent.attest import AttestationSettings, Attester
    from agent.tpm import Tpm

    with _failing_clearly():
        settings = _settings(config, directory, renewal=renewal, tcti=tcti)
        log = AttestationSettings(measurements) if measurements else AttestationSettings()
        store = _store(settings)
        with Tpm(settings.tcti) as tpm:
            attester = Attester(settings, log, store, tpm, SystemClock(), random.random)
            answer = asyncio.run(attester.push())
        _show(store.identity(), as_json, {"attested_until": _time(answer.attested_until), "interval": answer.interval})


@app.command()
def status(
    test_key: Annotated[bool, typer.Option("--test-key", help="Do a handshake in memory with the key.")] = False,
    tcti: _Tcti = "",
    config: _Config = None,
    directory: _Directory = None,
    as_json: _Json = False,
) -> None:
    """Say who this node is, and until when."""
    with _failing_clearly():
        settings = _settings(config, directory, tcti=tcti)
        store = _store(settings)
        identity = store.identity()
        extra: dict[str, Any] = {"answer_outstanding": store.pending() is not None}
        if test_key:
            extra["signatures_by_tpm"] = _count_signatures(identity, settings)
        _show(identity, as_json, extra)


@app.command()
def health(config: _Config = None, directory: _Directory = None, as_json: _Json = False) -> None:
    """Say how this machine is now, and what its agent reported last."""
    from agent import health as reports
    from foundation.wire.health import ailments

    with _failing_clearly():
        settings = _settings(config, directory)
        now = SystemClock().now()
        here, last = reports.take(reports.HealthSettings(), now), reports.newest(settings.directory)
        facts: dict[str, Any] = {"now": here.document(), "reported": last.document() if last else None}
        facts["ailments"] = [each.value for each in ailments(last or here)]
        _print(facts if as_json else _health_lines(facts, now), as_json)


def _health_lines(facts: dict[str, Any], now: float) -> dict[str, Any]:
    """The facts of now, over them those that only the agent knows, each on a line."""
    reported = facts["reported"]
    age = f"{now - reported['at']:.0f} s ago" if reported else "never: does the agent run?"
    known = {**(reported or {}), **facts["now"], "reported": age, "ailments": ", ".join(facts["ailments"]) or "none"}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}


@app.command()
def call(
    method: Annotated[str, typer.Argument(help="GET, POST, …")],
    path: Annotated[str, typer.Argument(help="Path and query, sent as they stand.")],
    data: Annotated[str, typer.Option(help="Body; @FILE reads a file, @- standard input.")] = "",
    header: Annotated[list[str] | None, typer.Option(help="`Name: value`; may stand several times.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Let the answer last: a watch.")] = False,
    gateway: _Gateway = "",
    tcti: _Tcti = "",
    config: _Config = None,
    directory: _Directory = None,
) -> None:
    """Call a service behind the gateway with this node's key. The answer's body goes to standard output as it comes."""
    from agent.call import Call

    with _failing_clearly():
        settings = _settings(config, directory, gateway=gateway, tcti=tcti)
        if settings.gateway is None:
            raise Fault(Reason.SETTING_INVALID, "say where the gateway is, as host:port", field="agent.gateway")
        request = Call(method.upper(), path, _headers(header or ()), _body(data), None if stream else settings.timeout)
        status_code = _call(settings, settings.gateway, request)
        if status_code >= 400:
            typer.echo(f"the service answers {status_code}", err=True)
            raise typer.Exit(1)


def _call(settings: AgentSettings, gateway: Address, request: Call) -> int:
    from agent.call import call as call_through_gateway
    from agent.keys import client_context, stored_key, telling_why, tpm_for

    identity = _store(settings).identity()
    with tpm_for(identity.key, settings) as tpm:
        key = stored_key(identity.key, tpm)
        with telling_why(key):
            return asyncio.run(call_through_gateway(gateway, client_context(identity, key), request, _write))


def _count_signatures(identity: Identity, settings: AgentSettings) -> int:
    from agent.keys import stored_key, tpm_for
    from agent.tlskey import TpmTlsKey, self_test

    with tpm_for(identity.key, settings) as tpm:
        key = stored_key(identity.key, tpm)
        return self_test(key) if isinstance(key, TpmTlsKey) else 0


def _settings(
    config: Path | None, directory: Path | None, *, event_log: Path | None = None, tcti: str = "", **addresses: str
) -> AgentSettings:
    """The file's settings, and over them the command line's."""
    path = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    settings = AgentSettings.load(path) if path else AgentSettings()
    given: dict[str, Any] = {name: Address.parse(text, f"--{name}") for name, text in addresses.items() if text}
    given |= {"directory": directory} if directory else {}
    given |= {"event_log": event_log} if event_log else {}
    given |= {"tcti": tcti} if tcti else {}
    return replace(settings, **given)


def _store(settings: AgentSettings) -> NodeStore:
    from agent.store import NodeStore

    return NodeStore(settings.directory, settings.pem)


def _headers(lines: list[str] | tuple[()]) -> tuple[tuple[str, str], ...]:
    split = [line.partition(":") for line in lines]
    if any(not name or not colon or "\n" in value or "\r" in value for name, colon, value in split):
        raise Fault(Reason.REQUEST_MALFORMED, "expected `Name: value`", field="--header")
    return tuple((name.strip(), value.strip()) for name, _, value in split)


def _body(data: str) -> bytes | None:
    if not data.startswith("@"):
        return data.encode() if data else None
    try:
        return sys.stdin.buffer.read() if data == "@-" else Path(data[1:]).read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=data[1:]) from error


def _write(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _wrong_key(key: str) -> str:
    raise Fault(Reason.SETTING_INVALID, f"expected tpm or software, not {key!r}", field="--key")


def _show(identity: Identity, as_json: bool, extra: dict[str, Any]) -> None:
    issued = identity.issued
    facts: dict[str, Any] = {
        "spiffe_id": issued.spiffe_id,
        "attestation": issued.attestation,
        "key": identity.key.kind,
        "not_after": _time(issued.not_after),
        "renew_after": _time(issued.renew_after),
        "attested_until": _time(issued.attested_until),
        **extra,
    }
    _print(facts, as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{typer.style(name.replace('_', ' ').rjust(18), dim=True)}  {value}")


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    if quiet or not sys.stderr.isatty():
        yield lambda _step: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as spinner:
        yield lambda step: spinner.update(escape(step))


@contextlib.contextmanager
def _failing_clearly() -> Iterator[None]:
    """What went wrong and what to do, on standard error; exit code 1."""
    try:
        yield
    except Fault as fault:
        code = typer.style(fault.reason.code, fg="red", bold=True)
        typer.echo(f"{code}: {fault.reason.meaning}", err=True)
        if fault.detail:
            where = f" ({fault.field})" if fault.field else ""
            typer.echo(f"  {fault.detail}{where}", err=True)
        typer.echo(f"  {typer.style('what to do:', fg='green')} {fault.reason.remedy}", err=True)
        if decision := getattr(fault, "decision", ""):  # of a gateway's refusal
            typer.echo(f"  sallyport explain {decision}", err=True)
        raise typer.Exit(1) from None

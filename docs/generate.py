"""Writes docs/reference from the code, or with `--check` fails when a file there is stale.

Generators are functions of no arguments that return a file's text; each is listed in `_GENERATED`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from typer.main import get_command

import sallyport
from agent.configuration import RunSettings
from agent.port import PortSettings
from agent.supervised import ServiceSettings as Supervised
from docs.settings_reference import settings_rows
from foundation.api import ApiRoute
from foundation.audit.settings import AuditSettings
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.hotstate.settings import HotStateSettings, RedisSettings
from foundation.reasons import Reason
from foundation.storage.settings import StorageSettings
from foundation.telemetry import TelemetrySettings
from foundation.wire.enrolment_schema import schema
from gateway.access.settings import AccessLogSettings
from gateway.api.access import AccessApi
from gateway.api.operators import OperatorsApi
from gateway.api.process import ProcessApi
from gateway.api.settings import ApiSettings
from gateway.api.shadow import ShadowApi
from gateway.api.upstreams import UpstreamsApi
from gateway.configuration import SystemSettings
from gateway.feed import UpstreamAuthoritySettings
from gateway.health import HealthSettings
from gateway.plane import ProcessSettings
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.overload import OverloadSettings
from gateway.proxy.services import GatewayListenerSettings
from gateway.proxy.upstream import UpstreamSettings
from gateway.streams.timing import StreamSettings
from pki.api.attestation import attestation_routes
from pki.api.enrolment import enrolment_routes, renewal_routes
from pki.api.node import node_routes
from pki.api.routes import authority_routes
from pki.enrol.settings import EnrolmentSettings
from pki.settings import AuthoritySettings
from policies.lifecycle.upstreams_schema import schema as upstreams_section
from policies.settings import PolicySettings
from policies.staleness import StalenessSettings

REFERENCE = Path(__file__).resolve().parent / "reference"
_BY = "by `make generate`."


def reasons() -> str:
    """The closed vocabulary, one row a code."""
    rows = [f"| `{each.code}` | {each.status} | {each.meaning} | {each.remedy} |" for each in Reason]
    head = [
        "# Reason codes",
        "",
        f"Generated from `foundation/reasons.py` {_BY} Every refusal carries one of these codes, with its",
        "outward HTTP status; a code is never renamed and never reused.",
        "",
        "| code | status | meaning | what to do |",
        "|---|---|---|---|",
    ]
    return _lines([*head, *rows])


def settings() -> str:
    """Every setting of sallyport.toml and of the agent's file."""
    sections = {
        "sallyport": SystemSettings.parse,
        "storage": StorageSettings.parse,
        "audit": AuditSettings.parse,
        "decisions": DecisionLogSettings.parse,
        "hotstate": HotStateSettings.parse,
        "hotstate.redis": RedisSettings.parse,
        "telemetry": TelemetrySettings.parse,
        "health": HealthSettings.parse,
        "authority": AuthoritySettings.parse,
        "enrolment": lambda fields: EnrolmentSettings.parse(fields, production=False),
        "api": ApiSettings.parse,
        "policy": PolicySettings.parse,
        "upstream_authority": UpstreamAuthoritySettings.parse,
        "gateway": ProcessSettings.parse,
        "gateway.listener": GatewayListenerSettings.parse,
        "gateway.http2": Http2Settings.parse,
        "gateway.upstreams": UpstreamSettings.parse,
        "gateway.staleness": StalenessSettings.parse,
        "gateway.streams": StreamSettings.parse,
        "access_log": AccessLogSettings.parse,
        "gateway.overload": OverloadSettings.parse,
        "agent": RunSettings.parse,
        "agent.port": PortSettings.parse,
        "agent.service": Supervised.parse,
    }
    rows = [f"| `{path}` | {kind} | {_code(default)} |" for path, kind, default in settings_rows(sections)]
    head = [
        "# Settings",
        "",
        f"Generated from the parts that read them, {_BY} A duration is a number with `ms`, `s`, `m`, `h` or `d`; a",
        "size one with `B`, `KiB`, `MiB` or `GiB`. A setting that is wrong or unknown stops the start with its name.",
        "`agent` is the node's own file, `/etc/sallyport/agent.toml`; everything else is `sallyport.toml`, where a",
        "gateway of an authority elsewhere has its section `agent` too.",
        "",
        "| setting | kind | default |",
        "|---|---|---|",
    ]
    return _lines([*head, *rows])


def commands() -> str:
    """Every command with its options."""
    lines = ["# Commands", "", f"Generated from the commands themselves {_BY} Exit codes: 0 done; 1 refused or failed,"]
    lines += ["with the reason on standard error; 2 the command line is wrong."]
    for name, (module, attribute, about) in sallyport.COMMANDS.items():
        command = get_command(getattr(importlib.import_module(module), attribute or "app"))
        lines += ["", f"## sallyport {name}", "", about]
        for words, each in _leaves(f"sallyport {name}", command):
            lines += ["", f"### `{words}`", "", (each.help or "").split("\f")[0].strip(), ""]
            options = [option for option in each.params if "completion" not in option.name]
            lines += [f"- {_option(option)}" for option in options]
    return _lines(lines)


def openapi() -> str:
    """The APIs as OpenAPI 3.1: paths, what decides them, who is answered how."""
    nothing: Any = _Nothing()
    routes = authority_routes(nothing, "fleet.example", verify_bundle=nothing, audit_head=nothing)
    routes += node_routes(nothing, "fleet.example", policy_key=nothing, terms=nothing)
    routes += renewal_routes(nothing) + attestation_routes(nothing) + OperatorsApi(*[nothing] * 7).routes()
    routes += UpstreamsApi(nothing, nothing).routes() + ShadowApi(nothing).routes()
    routes += AccessApi(*[nothing] * 3).routes() + ProcessApi(*[nothing] * 4).routes()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes + enrolment_routes(nothing):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Sallyport", "version": "1", "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"responses": {"refused": {"description": "problem+json with a reason code (reasons.md)"}}},
    }
    return json.dumps(document, indent=1) + "\n"


def enrolment_schema() -> str:
    """The enrolment protocol's messages as JSON Schema."""
    return json.dumps(schema(), indent=2) + "\n"


def upstreams_schema() -> str:
    """The section `upstreams` of routes.yaml as JSON Schema."""
    return json.dumps(upstreams_section(), indent=2) + "\n"


_GENERATED: dict[str, Callable[[], str]] = {
    "reasons.md": reasons,
    "settings.md": settings,
    "commands.md": commands,
    "openapi.json": openapi,
    "enrolment.schema.json": enrolment_schema,
    "upstreams.schema.json": upstreams_schema,
}


class _Nothing:
    """Stands for parts that routes are made of but that no route is asked here."""

    def __getattr__(self, name: str) -> Any:
        return self


def _operation(route: ApiRoute) -> dict[str, Any]:
    named = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query]
    operation: dict[str, Any] = {
        "summary": route.summary,
        "x-policy-route": f"api.{route.name}",
        "parameters": parameters,
        "responses": {"200": {"description": "done"}, "default": {"$ref": "#/components/responses/refused"}},
    }
    if route.body_limit:
        operation["requestBody"] = {"content": {route.accepts: {}}, "x-max-bytes": route.body_limit}
    return operation


def _leaves(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from _leaves(f"{words} {name}", each)
    else:
        yield words, command


def _option(parameter: Any) -> str:
    named = parameter.opts if parameter.opts[0].startswith("-") else [parameter.name]
    about = cast(str, getattr(parameter, "help", "") or "")
    return f"{', '.join(map(_code, named))} {about}".strip()


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [name for name, generate in _GENERATED.items() if _differs(name, generate())]
    for name in stale:
        if check:
            print(f"docs/reference/{name} is stale: run `make generate`", file=sys.stderr)
        else:
            REFERENCE.mkdir(exist_ok=True)
            (REFERENCE / name).write_text(_GENERATED[name](), encoding="utf-8")
    return 1 if check and stale else 0


def _differs(name: str, text: str) -> bool:
    path = REFERENCE / name
    return not path.exists() or path.read_text(encoding="utf-8") != text


def _lines(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())

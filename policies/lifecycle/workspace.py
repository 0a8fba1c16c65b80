"""The security team's folder, and what it becomes: routes for the gateway, data and Rego for the engine.

    routes.yaml     routes and what each asks of whoever uses it
    grants.yaml     roles, grants and denies
    segments.yaml   segments: which reach which by streams, which nodes they select, where those live
    api.yaml        optional: who may call our own API, instead of policies/rego/api.yaml
    rules/*.rego    optional: own rules, `package sallyport.custom`, which can only deny; `*_test.rego` beside them
    policy/*.rego   optional: a whole policy of their own, instead of policies/rego

`load_workspace` judges values alone; `read_workspace` is the one that reads files. Every error names file and line, and
all errors are found in one go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from policies.lifecycle.findings import Findings
from policies.lifecycle.grants_yaml import Grants, Known, read_grants
from policies.lifecycle.routes_yaml import Routes, read_routes
from policies.lifecycle.segments_yaml import (
    LABEL_RULES,
    LABEL_TEMPLATE,
    Segments,
    label_rules,
    read_segments,
    selector_rows,
)
from policies.lifecycle.strict_yaml import Document
from policies.routes import Route

DEFAULT_POLICY = Path(__file__).parent.parent / "rego"
MAX_FILES = 256
MAX_FILE_BYTES = 2 << 20
_SOURCES = ("*.yaml", "rules/*.rego", "policy/*.rego")
OWN_SOURCES = ("rules/", "policy/")
"""Where rules of the team's own stand."""
# Files of the default policy, and the field without which their rules are never true: first of grants and denies.
_ASKED_FOR = {"denying_names.rego": "names", "matching_sites.rego": "sites"}
_ASKED_FOR_BY_SELECTORS = {"selecting_labels.rego": "labels", "selecting_sites.rego": "sites"}
_SELECTING = "selecting.rego"
_OWN_PACKAGE = re.compile(rb"package sallyport\.custom(\.[a-z_][a-z0-9_]*)*")
_API_ENTRY = re.compile(r"(\*|[a-z][a-z-]*)(\.(\*|[a-z][a-z-]*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace without errors. `data` is Rego's `data`; `rego` and `tests` map a path to its text, and so does
    `idle`: rules of the default policy that nothing in `data` can make true, which are tested but not built."""

    routes: tuple[Route, ...]
    data: Mapping[str, Any]
    rego: Mapping[str, bytes]
    tests: Mapping[str, bytes]
    idle: Mapping[str, bytes]


class WorkspaceInvalid(Fault):
    """Everything that is wrong with a workspace. As a `Fault` it is the first of `faults`."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        first = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(first.reason, first.detail + more, field=first.field)
        self.faults = faults


def load_workspace(
    files: Mapping[str, bytes], default_policy: Mapping[str, bytes], least: AttestationClass = AttestationClass.NONE
) -> Workspace:
    """The workspace in `files` (relative path to content) over `default_policy`, in which no route is content with less
    than `least`. Raises `WorkspaceInvalid`."""
    findings = Findings()
    segments = read_segments(findings.parse(files, "segments.yaml"), findings)
    routes = read_routes(findings.parse(files, "routes.yaml"), findings, frozenset(segments.reaches), least)
    api = _read_api(findings.parse({**default_policy, **files}, "api.yaml"), findings)
    known = Known(routes.types, routes.requests, frozenset(segments.reaches), frozenset(api["roles"]))
    grants = read_grants(findings.parse(files, "grants.yaml"), findings, known)
    sources = _sources(files, default_policy, findings)
    if findings.faults:
        raise WorkspaceInvalid(tuple(findings.faults))
    tests = {path: text for path, text in sources.items() if path.endswith("_test.rego")}
    idle = {path: text for path, text in sources.items() if path in _idle(grants, segments)}
    rego = {path: text for path, text in sources.items() if path not in tests and path not in idle}
    if LABEL_TEMPLATE in sources and segments.labels:
        rego[LABEL_RULES] = label_rules(sources[LABEL_TEMPLATE], segments.labels)
    return Workspace(tuple(routes.routes.values()), _data(routes, grants, segments, api), rego, tests, idle)


def read_workspace(folder: Path, least: AttestationClass = AttestationClass.NONE) -> Workspace:
    """`load_workspace` of the files in `folder` over the default policy. Raises `Fault`."""
    if not folder.is_dir():
        raise Fault(Reason.FILE_UNREADABLE, "no such folder", field=str(folder))
    return load_workspace(read_files(folder, _SOURCES), default_policy(), least)


def default_policy() -> dict[str, bytes]:
    """The default policy, its tests and api.yaml, as shipped."""
    return read_files(DEFAULT_POLICY, ("*.rego", "tests/*_test.rego", "api.yaml"))


def read_files(folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    """The plain files of `folder` that match, by relative path. Raises `Fault`."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if len(paths) > MAX_FILES:
        raise Fault(Reason.POLICY_DATA_INVALID, f"{len(paths)} files, at most {MAX_FILES} are allowed")
    return {path.relative_to(folder).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    if len(content) > MAX_FILE_BYTES:
        raise Fault(Reason.POLICY_DATA_INVALID, f"larger than {MAX_FILE_BYTES} bytes", field=str(path))
    return content


def _data(routes: Routes, grants: Grants, segments: Segments, api: Mapping[str, Any]) -> dict[str, Any]:
    rows = {
        "routes": routes.rows,
        "grants": grants.granted,
        "denies": grants.denied,
        "segments": segments.reaches,
        "api": api,
    }
    if segments.selectors:
        rows["selectors"] = selector_rows(segments)
    if segments.networks:
        rows["networks"] = segments.networks
    return {"workspace": rows}


def _read_api(document: Document, findings: Findings) -> dict[str, dict[str, list[str]]]:
    """Roles and kinds to the API routes they may call."""
    found: dict[str, dict[str, list[str]]] = {"roles": {}, "kinds": {}}
    with findings.collecting(document):
        fields = document.fields()
        for part, table in found.items():
            section = fields.section(part, optional=True)
            for holder in document.value.get(part, {}):
                with findings.collecting(document):
                    table[holder] = _api_entries(section, part, holder)
        fields.finish()
    return found


def _api_entries(section: Fields, part: str, holder: str) -> list[str]:
    if part == "kinds" and holder not in {Kind.NODE, Kind.GATEWAY}:
        raise section.fault(holder, "only node and gateway stand here; operators and services have roles")
    entries = section.texts(holder)
    if not entries or not all(_API_ENTRY.fullmatch(entry) for entry in entries) or "*" in entries or "*.*" in entries:
        raise section.fault(holder, "expected a list of <area>.<verb>, <area>.* or *.<verb>")
    return sorted(set(entries))


def _sources(files: Mapping[str, bytes], default: Mapping[str, bytes], findings: Findings) -> dict[str, bytes]:
    """Rego by path: the default policy, or the team's whole own, and the team's rules."""
    own = {path: text for path, text in files.items() if path.startswith("policy/") and path.endswith(".rego")}
    rules = {path: text for path, text in files.items() if path.startswith("rules/") and path.endswith(".rego")}
    for path, text in rules.items():
        if not path.endswith("_test.rego"):
            _check_package(path, text, findings)
    return {**(own or {path: text for path, text in default.items() if path.endswith(".rego")}), **rules}


def _idle(grants: Grants, segments: Segments) -> frozenset[str]:
    """The rules that read what no row of the data asks about. What policy does not read is in no decision's key:
    without those on names and sites, identities that are alike share their decisions. Of labels, only those that
    selectors name are asked about, by rules made of the template."""
    granted = (row for roles in grants.granted.values() for rows in roles.values() for row in rows)
    named = {field for row in (*granted, *chain(*grants.denied.values())) for field in row}
    idle = {path for path, field in _ASKED_FOR.items() if field not in named}
    idle |= {path for path, field in _ASKED_FOR_BY_SELECTORS.items() if field not in segments.conditions}
    return frozenset({LABEL_TEMPLATE, *idle, *(() if segments.selectors else (_SELECTING,))})


def _check_package(path: str, text: bytes, findings: Findings) -> None:
    """Own rules must stand in `sallyport.custom`: elsewhere they could allow. Rego's first statement is its package."""
    for number, line in enumerate(text.splitlines(), 1):
        statement = line.strip()
        if statement and not statement.startswith(b"#"):
            if not _OWN_PACKAGE.fullmatch(statement):
                detail = "own rules begin with `package sallyport.custom`"
                findings.faults.append(Fault(Reason.POLICY_DATA_INVALID, detail, field=f"{path}:{number}"))
            return

"""What a workspace must pass before it becomes a revision: data by its schemas, Rego by OPA's type checker with the
schemas, and its tests, every line covered. OPA runs under the bounds of `policies.compile`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.compile import CAPABILITIES, Workshop, canonical_data, compile_policy
from policies.lifecycle.segments_yaml import LABEL_RULES
from policies.lifecycle.workspace import DEFAULT_POLICY, Workspace, read_files
from policies.settings import CompileSettings

TESTS_FAILED = 2  # `opa test` ends with this status when a test fails
_DATA = "data.json"


@dataclass(frozen=True, slots=True)
class RegoTest:
    """One test that ran. `outcome` is `passed`, `failed` or `error`."""

    name: str
    where: str
    outcome: str


@dataclass(frozen=True, slots=True)
class TestReport:
    """All tests of a workspace. `coverage` is the share of the policy's lines that ran, in percent; `uncovered` names
    those that did not. Both say nothing while a test fails."""

    __test__ = False  # for pytest: this is no test class

    tests: tuple[RegoTest, ...]
    coverage: float
    uncovered: tuple[str, ...]

    @property
    def failed(self) -> tuple[RegoTest, ...]:
        return tuple(test for test in self.tests if test.outcome != "passed")


def check(workspace: Workspace, settings: CompileSettings) -> None:
    """Compile `workspace` and hold it against the schemas. Blocks while OPA runs. Raises `Fault`."""
    schemas = _schemas()
    for name, rows in workspace.data["workspace"].items():
        _check_data(name, rows, json.loads(schemas[f"schemas/data/{name}.json"]))
    compile_policy(workspace.rego, workspace.data, settings)
    with _workshop({**workspace.rego, **schemas}, settings) as workshop:
        sources = [f"rego/{path}" for path in workspace.rego]
        workshop.run("check", "--strict", "--schema=rego/schemas", f"--capabilities={CAPABILITIES}", *sources)


def run_tests(workspace: Workspace, settings: CompileSettings) -> TestReport:
    """Run the workspace's tests, with its data in place. Blocks while OPA runs. Raises `Fault` when they cannot run."""
    files = {**workspace.rego, **workspace.idle, **workspace.tests, _DATA: canonical_data(workspace.data)}
    command = ("test", "--format=json", f"--timeout={settings.timeout:g}s", *(f"rego/{path}" for path in files))
    with _workshop(files, settings) as workshop:
        tests = tuple(_test(item) for item in json.loads(workshop.run(*command, accept=(0, TESTS_FAILED))) or ())
        if any(test.outcome != "passed" for test in tests):
            return TestReport(tests, 0.0, ())
        covered = json.loads(workshop.run(*command, "--coverage"))["files"]
    return TestReport(tests, *_coverage(covered, workspace))


def require_tests(report: TestReport, threshold: float) -> None:
    """Raises `Fault(POLICY_TEST_FAILED)` unless there are tests, all passed, and they cover `threshold` percent."""
    if not report.tests:
        raise Fault(Reason.POLICY_TEST_FAILED, "there are no tests")
    if report.failed:
        first = report.failed[0]
        raise Fault(Reason.POLICY_TEST_FAILED, f"{first.name} ({len(report.failed)} in all)", field=first.where)
    if report.coverage < threshold:
        where = report.uncovered[0] if report.uncovered else ""
        detail = f"tests cover {report.coverage:.1f} % of the policy, {threshold:g} % are asked for"
        raise Fault(Reason.POLICY_TEST_FAILED, detail, field=where)


def ending_grants(workspace: Workspace, before: float) -> tuple[tuple[str, int], ...]:
    """Grants that end before this time, the first to end first; times in seconds since the Unix epoch."""
    granted = workspace.data["workspace"]["grants"]
    rows = [row for roles in granted.values() for grants in roles.values() for row in grants]
    ending = [(row["id"], row["expires"]) for row in rows if row["expires"] < before]
    return tuple(sorted(ending, key=lambda item: (item[1], item[0])))


@contextmanager
def _workshop(files: Mapping[str, bytes], settings: CompileSettings) -> Iterator[Workshop]:
    with tempfile.TemporaryDirectory(prefix="sallyport-policy-") as folder:
        workshop = Workshop(Path(folder), settings)
        workshop.write(files)
        yield workshop


def _schemas() -> dict[str, bytes]:
    return read_files(DEFAULT_POLICY, ("schemas/*.json", "schemas/data/*.json"))


def _check_data(name: str, rows: Any, schema: Mapping[str, Any]) -> None:
    """What the YAML readers made must be what the schemas, and so the rules, expect."""
    error = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(rows)), None)
    if error is not None:
        where = ".".join(["data.workspace", name, *(str(step) for step in error.absolute_path)])
        raise Fault(Reason.POLICY_DATA_INVALID, error.message[:256], field=where)


def _test(item: Mapping[str, Any]) -> RegoTest:
    outcome = "error" if "error" in item else "failed" if item.get("fail") else "passed"
    where = f"{_source(item['location']['file'])}:{item['location']['row']}"
    return RegoTest(f"{item['package'].removeprefix('data.')}.{item['name']}", where, outcome)


def _coverage(covered: Mapping[str, Any], workspace: Workspace) -> tuple[float, tuple[str, ...]]:
    """Over the policy's own lines; a file that no test touched counts with one line. Rules made of a template count as
    that does."""
    lines, missed = 0, list[str]()
    for path in {*workspace.rego, *workspace.idle} - {LABEL_RULES}:
        report = covered.get(f"rego/{path}", {"not_covered": [{"start": {"row": 1}, "end": {"row": 1}}]})
        without = _rows(report.get("not_covered", ()))
        lines += len(without | _rows(report.get("covered", ())))
        missed += [f"{path}:{row}" for row in sorted(without)]
    return 100.0 * (lines - len(missed)) / max(lines, 1), tuple(sorted(missed))


def _rows(ranges: Any) -> set[int]:
    return {row for item in ranges for row in range(item["start"]["row"], item["end"]["row"] + 1)}


def _source(path: str) -> str:
    return path.removeprefix("rego/")

"""The default policy's own tests, types and form."""

from __future__ import annotations

import json
import subprocess

import jsonschema
import pytest

from foundation.faults import Fault
from foundation.identity import AttestationClass, Posture, Verdict
from foundation.reasons import Reason
from policies.lifecycle.checking import check, ending_grants, require_tests, run_tests
from policies.lifecycle.workspace import DEFAULT_POLICY, Workspace, default_policy, load_workspace
from policies.settings import CompileSettings
from tests.support.policy import MINIMAL, starter
from tests.support.workspaces import fleet_workspace, node, query

SETTINGS = CompileSettings(timeout=60.0)


def with_rules(**rules: str) -> Workspace:
    files = {f"rules/{name}.rego": text.encode() for name, text in rules.items()}
    return load_workspace({**MINIMAL, **files}, default_policy())


def test_every_line_is_covered_by_tests_that_pass() -> None:
    report = run_tests(starter(), SETTINGS)
    assert report.failed == ()
    assert report.uncovered == ()
    assert len(report.tests) > 50
    require_tests(report, 100.0)


def test_it_is_formatted() -> None:
    files = sorted(str(path) for path in DEFAULT_POLICY.rglob("*.rego"))
    done = subprocess.run(["opa", "fmt", "--list", *files], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_starter_and_a_large_workspace_pass_the_schemas() -> None:
    check(starter(), SETTINGS)
    check(load_workspace(fleet_workspace(20, 50), default_policy()), SETTINGS)


def test_the_schema_of_input_is_that_of_a_query() -> None:
    schema = json.loads((DEFAULT_POLICY / "schemas" / "input.json").read_bytes())
    posture = Posture(AttestationClass.VIRTUAL, Verdict.PASSED)
    for asked in (query(), query(labels={"a": "b"}, target=node("b"), target_posture=posture)):
        jsonschema.validate(asked.to_input(), schema)


def test_a_misspelt_fact_is_an_error_with_its_line() -> None:
    rule = 'package sallyport.custom\n\ndeny contains "no" if input.identity.teer == 3\n'
    with pytest.raises(Fault) as caught:
        check(with_rules(own=rule), SETTINGS)
    assert (caught.value.reason, caught.value.field) == (Reason.POLICY_COMPILE, "rules/own.rego:3")
    assert "teer" in caught.value.detail


def test_data_that_the_rules_do_not_expect_is_refused() -> None:
    rows = {**starter().data["workspace"], "segments": {"edge": "lab"}}
    with pytest.raises(Fault) as caught:
        check(Workspace((), {"workspace": rows}, starter().rego, {}, {}), SETTINGS)
    assert (caught.value.reason, caught.value.field) == (Reason.POLICY_DATA_INVALID, "data.workspace.segments.edge")


def test_own_rules_need_tests_too() -> None:
    rule = 'package sallyport.custom\n\ndeny contains "no" if input.request.host == "evil.test"\n'
    report = run_tests(with_rules(own=rule), SETTINGS)
    assert report.uncovered == ("rules/own.rego:3",)
    with pytest.raises(Fault) as caught:
        require_tests(report, 100.0)
    assert (caught.value.reason, caught.value.field) == (Reason.POLICY_TEST_FAILED, "rules/own.rego:3")
    require_tests(report, 90.0)


def test_a_failing_test_is_named_with_its_line() -> None:
    rule = 'package sallyport.custom\n\ndeny contains "no" if input.request.host == "evil.test"\n'
    failing = "package sallyport.custom_test\n\ntest_it if false\n"
    report = run_tests(with_rules(own=rule, own_test=failing), SETTINGS)
    with pytest.raises(Fault) as caught:
        require_tests(report, 0.0)
    assert caught.value.reason is Reason.POLICY_TEST_FAILED
    assert caught.value.field == "rules/own_test.rego:3"


def test_tests_see_the_workspace_s_data() -> None:
    rule = 'package sallyport.custom\n\ndeny contains "no" if input.request.host == "evil.test"\n'
    text = """package sallyport.custom_test

test_denied if {
	count(data.sallyport.custom.deny) == 1 with input as {"request": {"host": "evil.test"}}
	data.workspace.grants.r.agent[0].id == "g"
}
"""
    require_tests(run_tests(with_rules(own=rule, own_test=text), SETTINGS), 100.0)


def test_grants_that_end_soon_are_told() -> None:
    ending = ending_grants(starter(), 4_000_000_000)
    assert ending[0][0] == "operator-control-plane"
    assert ending_grants(starter(), 0) == ()

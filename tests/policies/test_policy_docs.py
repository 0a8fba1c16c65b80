"""The examples of docs/policy.md are a workspace that passes."""

from __future__ import annotations

import re
from pathlib import Path

from policies.lifecycle.checking import check, require_tests, run_tests
from policies.lifecycle.workspace import default_policy, load_workspace
from policies.settings import CompileSettings

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text("utf-8")
SETTINGS = CompileSettings(timeout=60.0)


def test_the_examples_are_a_workspace_that_passes() -> None:
    routes, pools, grants, segments = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    rule, test = re.findall(r"```rego\n(.*?)```", TEXT, re.DOTALL)
    files = {
        "routes.yaml": routes,
        "grants.yaml": grants,
        "segments.yaml": segments,
        "rules/own.rego": rule,
        "rules/own_test.rego": test,
    }
    found = load_workspace({name: text.encode() for name, text in files.items()}, default_policy())
    load_workspace({name: text.encode() for name, text in (files | {"routes.yaml": pools}).items()}, default_policy())
    check(found, SETTINGS)
    require_tests(run_tests(found, SETTINGS), 100.0)

"""Rules that nothing in the data can make true are not built: identities that are alike share their decisions, until a
deny tells them apart."""

from __future__ import annotations

import pytest

from foundation.reasons import Reason
from policies.compile import compile_policy
from policies.lifecycle.checking import require_tests, run_tests
from policies.lifecycle.workspace import Workspace
from policies.model import Answer
from policies.settings import CompileSettings
from policies.wasm import WasmEngine
from tests.support.policy import MINIMAL, engine_of, starter, workspace
from tests.support.workspaces import query

NAME, SITE = ("identity", "name"), ("identity", "site")
GRANTS = MINIMAL["grants.yaml"].decode()
BY_NAME = "denies:\n  - {id: d, why: stolen, route: %s, names: [n7]}\n"


def denying() -> Workspace:
    route = workspace().routes[0].name
    return workspace(grants=GRANTS + BY_NAME % route)


def reads(found: Workspace) -> tuple[tuple[str, ...], ...]:
    return compile_policy(found.rego, found.data, CompileSettings()).reads


def test_a_name_is_read_by_policies_that_deny_by_name_alone() -> None:
    assert NAME not in reads(workspace())
    assert NAME in reads(denying())


def placed(sites: str = "[oslo]") -> Workspace:
    return workspace(grants=GRANTS.replace("expires:", f"sites: {sites}, expires:"))


def test_a_site_is_read_by_policies_that_name_sites_alone() -> None:
    assert SITE not in reads(workspace())
    assert SITE in reads(placed())
    route = workspace().routes[0].name
    deny = f"denies:\n  - {{id: d, why: closed, route: {route}, sites: [oslo]}}\n"
    assert SITE in reads(workspace(grants=GRANTS + deny))


@pytest.mark.parametrize(("site", "allowed"), [("oslo", True), ("bergen", False)])
def test_a_grant_for_a_site_allows_there_alone(site: str, allowed: bool) -> None:
    engine = engine_of(placed())
    try:
        assert engine.decide_now(query(route="r", roles=("agent",), site=site)).allow is allowed
    finally:
        engine.stop()


def ask(engine: WasmEngine, name: str) -> Answer:
    role = next(iter(workspace().data["workspace"]["grants"][workspace().routes[0].name]))
    return engine.decide_now(query(route=workspace().routes[0].name, name=name, roles=(role,)))


@pytest.mark.parametrize(("name", "denied"), [("n7", True), ("n8", False)])
def test_a_deny_by_name_denies_that_name_alone(name: str, denied: bool) -> None:
    engine = engine_of(denying())
    try:
        assert (ask(engine, name).reasons == (Reason.DENY_OVERRIDE,)) is denied
    finally:
        engine.stop()


def test_rules_that_are_not_built_are_tested() -> None:
    found = starter()
    assert found.idle
    assert not found.idle.keys() & found.rego.keys()
    require_tests(run_tests(found, CompileSettings()), 100.0)

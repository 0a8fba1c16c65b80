"""Who can reach what over segments: the answers name the segments, and the selectors that put a node there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from policies.access.asking import Policy, Probe, Subject, access, probes_of
from policies.access.classes import ANY, DIMENSIONS, OTHER, AccessClass, classes, nodes
from policies.access.cli import app
from policies.access.loaded import loaded
from policies.access.targets import told_apart
from policies.access.telling import Asked, what_document, who_document, why_explanation
from policies.compile import compile_policy
from policies.settings import CompileSettings, PolicySettings
from tests.support.policy import workspace

NOW = 1_800_000_000
ROUTES = "routes: [{name: sql, type: stream, service: sql, kinds: [node]}]\n"
GRANTS = "roles: {app: An app}\ngrants: [{id: g, role: app, route: sql, expires: 2030-01-01}]\n"
SEGMENTS = """
segments:
  - {name: web, reaches: [database]}
  - {name: database, select: {labels: {role: [db, replica]}, regions: [eu]}}
  - {name: north, select: {sites: [n], tiers: [1]}, reaches: [north, database]}
"""
DATABASE = "database (which selects label role db or replica, region eu)"


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    found = workspace(routes=ROUTES, grants=GRANTS, segments=SEGMENTS)
    with loaded(compile_policy(found.rego, found.data, CompileSettings()), 7, PolicySettings()) as made:
        yield made


def subject(name: str, segment: str = "", **facts: Any) -> Subject:
    record = IdentityRecord(SpiffeId("x.test", Kind.NODE, name), State.ACTIVE, 1, ("app",), 1, segment=segment)
    return Subject(replace(record, **facts), Posture(AttestationClass.HARDWARE, Verdict.PASSED))


DB = subject("db-1", labels={"role": "db", "serial": "1"}, region="eu")
NORTH = subject("n-1", site="n")
WEB = subject("web-1", "web")


def silent(_: int) -> bool:
    return True


def test_nodes_are_told_apart_by_what_selectors_look_at(policy: Policy) -> None:
    copies = [
        subject(f"db-{number}", labels={"role": "db", "serial": str(number)}, region="eu") for number in range(99)
    ]
    found = told_apart(policy, [*copies, WEB])
    assert [each.name for each in found] == [
        "99 nodes (segment (none), hardware, tier 1, region eu, role=db)",
        "web-1 (segment web, hardware, tier 1)",
    ]


def test_sites_that_no_selector_names_do_not_tell_nodes_apart(policy: Policy) -> None:
    fleet = [subject(f"n-{number}", "web", site=f"s{number}", region=f"r{number}") for number in range(200)]
    assert [each.name for each in told_apart(policy, [*fleet, NORTH])] == [
        "200 nodes (segment web, hardware, tier 1)",
        "n-1 (segment (none), hardware, tier 1, site n)",
    ]
    own = Policy(policy.ask, policy.explain, policy.data, policy.reads)  # its rules may ask what selectors do not
    with pytest.raises(Fault) as caught:
        told_apart(own, fleet)
    assert caught.value.reason is Reason.POLICY_BOMB


def test_a_stream_names_the_segments_and_the_selector(policy: Policy) -> None:
    found = what_document(policy, WEB, [WEB, DB, NORTH], NOW, 1000, silent)
    assert found["segments"] == ["web"]
    (way,) = found["routes"][0]["ways"]
    assert way["through"] == (f"web reaches {DATABASE}",)
    assert len(way["paths"]) == 1
    north = what_document(policy, NORTH, [WEB, DB, NORTH], NOW, 1000, silent)
    assert north["segments"] == ["north"]
    selected = "north (which selects site n, tier 1)"
    assert {way["through"] for way in north["routes"][0]["ways"]} == {
        (f"{selected} reaches {selected}",),
        (f"{selected} reaches {DATABASE}",),
    }


def test_without_an_inventory_a_node_of_each_selector_is_asked_about(policy: Policy) -> None:
    found = who_document(policy, "sql", [], NOW, 1000, silent)
    ways = {through for each in found["classes"] for way in each["access"]["ways"] for through in way["through"]}
    assert f"web reaches {DATABASE}" in ways
    assert "web reaches database" in ways
    assert found["also_reads"] == ("identity.labels.role", "staleness")


def test_why_tells_of_one_node(policy: Policy) -> None:
    others = [WEB, DB, NORTH]
    allowed = why_explanation(policy, WEB, others, "sql", Asked(to="db-1"), NOW)
    assert allowed.allowed
    assert allowed.sentences[1:] == (
        "the caller is in segment web, by its inventory record",
        "the target is in segment database, which selects label role db or replica, region eu",
        "segment web reaches database",
    )
    denied = why_explanation(policy, WEB, others, "sql", Asked(to=str(NORTH.record.id)), NOW)
    assert denied.reasons == (Reason.SEGMENT_FORBIDDEN,)
    assert "the target is in segment north; the caller's segment reaches database" in denied.sentences
    assert "the target is in segment north, which selects site n, tier 1" in denied.sentences


def test_why_names_what_it_cannot_be_asked(policy: Policy) -> None:
    with pytest.raises(Fault) as caught:
        why_explanation(policy, WEB, [WEB], "sql", Asked(to="db-9"), NOW)
    assert (caught.value.reason, caught.value.field) == (Reason.NOT_FOUND, "to")
    with pytest.raises(Fault) as caught:
        why_explanation(policy, WEB, [DB], "api.self.show", Asked(to="db-1"), NOW)
    assert (caught.value.reason, caught.value.field) == (Reason.MESSAGE_MALFORMED, "to")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    segment=st.sampled_from(["web", "database", "north", ""]),
    tier=st.integers(1, 3),
    site=st.sampled_from(["n", "s"]),
    region=st.sampled_from(["eu", "us"]),
    labels=st.sampled_from([{}, {"role": "db"}]),
)
def test_a_class_is_told_where_each_of_it_has_access(
    policy: Policy, segment: str, tier: int, site: str, region: str, labels: dict[str, str]
) -> None:
    probes = probes_of(policy, "sql", told_apart(policy, nodes(policy)))
    one = subject("someone", segment, tier=tier, site=site, region=region, labels=labels)
    spelled = {
        "role": "app",
        "tier": str(tier),
        "segment": segment or "none",
        "site": site if site == "n" else OTHER,
        "region": region if region == "eu" else OTHER,
        "labels": "role=db" if labels else "none",
        "attestation": "hardware",
    }
    held = [each for each in _classes(policy, probes) if each.kind == "node" and _holds(each, spelled)]
    found = access(policy, one, probes, NOW)
    assert [each.access for each in held] == ([found] if found is not None else [])


_TOLD: list[AccessClass] = []


def _classes(policy: Policy, probes: tuple[Probe, ...]) -> list[AccessClass]:
    if not _TOLD:
        _TOLD.extend(classes(policy, "sql", probes, NOW, 10**6, silent) or ())
    return _TOLD


def _holds(told: AccessClass, spelled: dict[str, str]) -> bool:
    return all(getattr(told, name) == (ANY,) or spelled[name] in getattr(told, name) for name in DIMENSIONS)


# --- on the command line --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft")
    for name, text in (("routes", ROUTES), ("grants", GRANTS), ("segments", SEGMENTS)):
        (folder / f"{name}.yaml").write_text(text)
    fleet = [
        {"name": "web-1", "roles": ["app"], "segment": "web"},
        {"name": "db-1", "roles": ["app"], "labels": {"role": "db"}, "region": "eu"},
    ]
    (folder / "fleet.json").write_text(json.dumps(fleet))
    return folder


def run(draft: Path, *words: str) -> Result:
    where = ["--workspace", str(draft), "--identities", str(draft / "fleet.json")]
    return CliRunner().invoke(app, [*words, *where])


def test_on_the_command_line(draft: Path) -> None:
    what = run(draft, "what-can-reach", "web-1").stdout
    assert f"web reaches {DATABASE}" in what
    assert "segment web; by the draft" in what
    assert f"web reaches {DATABASE}" in run(draft, "who-can-reach", "sql").stdout
    why = run(draft, "why", "web-1", "sql", "--to", "db-1").stdout
    assert "the target is in segment database, which selects label role db or replica, region eu" in why
    found = json.loads(run(draft, "what-can-reach", "new", "--label", "role=db", "--region", "eu", "--json").stdout)
    assert (found["segments"], found["routes"]) == (["database"], [])
    with pytest.raises(Fault, match="expected key=value"):
        raise run(draft, "what-can-reach", "new", "--label", "role").exception or AssertionError

"""Segments by selector: what segments.yaml becomes, which nodes they hold by the real engine, and whom a change of them
concerns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.identifiers import Kind
from foundation.reasons import Reason
from policies.compile import compile_policy
from policies.difference import PolicyDifference
from policies.engine import CompiledPolicy
from policies.lifecycle.checking import check, require_tests, run_tests
from policies.lifecycle.segments_yaml import LABEL_RULES, label_rules
from policies.lifecycle.workspace import Workspace, WorkspaceInvalid, default_policy
from policies.model import Query
from policies.segments import segments_of
from policies.settings import CompileSettings
from policies.wasm import WasmEngine
from tests.support.engines import put_data
from tests.support.policy import engine_of, workspace
from tests.support.workspaces import node, query

ROUTES = """
routes:
  - {name: shell, type: stream, service: ssh, kinds: [node, operator]}
  - {name: sql, type: stream, service: sql, kinds: [node], segments: [web], to: [database, cache]}
  - {name: http, upstreams: ['http://127.0.0.1:80'], kinds: [node], segments: [database]}
"""
GRANTS = """
roles: {agent: An agent}
grants:
  - {id: g1, role: agent, route: shell, expires: 2030-01-01}
  - {id: g2, role: agent, route: sql, expires: 2030-01-01}
  - {id: g3, role: agent, route: http, methods: [GET], paths: [/**], expires: 2030-01-01}
"""
SEGMENTS = """
segments:
  - name: web
    reaches: [database]
  - name: database
    select: {labels: {role: [replica, db]}, tiers: [2, 1], regions: [eu], sites: [s1, s2]}
    networks: [10.20.1.0/24, "fd00:20::/48", 10.20.0.0/24]
    reaches: [cache]
  - {name: cache, select: {labels: {role: [cache], zone: [a]}}}
  - {name: north, select: {regions: [north]}, reaches: [north]}
  - {name: attic, select: {sites: [attic]}}
  - {name: small, select: {tiers: [3]}}
"""
POSTURE = query().posture
SETTINGS = CompileSettings(timeout=60.0)


def placed(segments: str = SEGMENTS, routes: str = ROUTES, grants: str = GRANTS) -> Workspace:
    return workspace(routes=routes, grants=grants, segments=segments)


def compiled(found: Workspace) -> CompiledPolicy:
    return compile_policy(found.rego, found.data, SETTINGS)


def stream(
    route: str = "shell", caller: Mapping[str, Any] | None = None, target: Mapping[str, Any] | None = None
) -> Query:
    """A stream between nodes that are in no segment by their records, but for what is given."""
    asked = query(route, path=(), roles=("agent",), target=node("b", "", **(target or {})), target_posture=POSTURE)
    return asked._replace(identity=replace(asked.identity, **({"segment": "", "site": ""} | dict(caller or {}))))


DB = {"labels": {"role": "db"}, "tier": 1, "region": "eu", "site": "s1"}


@pytest.fixture(scope="module")
def engine() -> Iterator[WasmEngine]:
    made = engine_of(placed())
    yield made
    made.stop()


def test_a_selector_stands_under_its_most_telling_condition() -> None:
    data = placed().data["workspace"]
    selectors = data["selectors"]
    database = {"segment": "database", "reaches": ["cache"], "tiers": [1, 2], "regions": ["eu"], "sites": ["s1", "s2"]}
    cache = {"segment": "cache", "reaches": [], "labels": {"zone": ["a"]}}
    assert selectors["by_label"] == {"role": {"db": [database], "replica": [database], "cache": [cache]}}
    assert selectors["by_site"] == {"attic": [{"segment": "attic", "reaches": []}]}
    assert selectors["by_region"] == {"north": [{"segment": "north", "reaches": ["north"]}]}
    assert selectors["by_tier"] == [[], [], [], [{"segment": "small", "reaches": []}]]
    assert selectors["of"]["database"]["labels"] == {"role": ["db", "replica"]}
    assert data["networks"] == {"database": ["10.20.0.0/24", "10.20.1.0/24", "fd00:20::/48"]}
    assert data["routes"]["sql"]["to"] == ["database", "cache"]


def test_it_passes_the_schemas_and_every_line_is_tested() -> None:
    check(placed(), SETTINGS)
    require_tests(run_tests(placed(), SETTINGS), 100.0)


@pytest.mark.parametrize(
    ("select", "detail"),
    [
        ("select: {}", "every node"),
        ("select: {labels: {}}", "empty mapping"),
        ("select: {labels: {role: []}}", "empty list"),
        ("select: {labels: {role: db}}", "list"),
        ("select: {labels: {role: [1]}}", "strings"),
        ("select: {labels: {'a b': [x]}}", "no name of a label"),
        ("select: {labels: {'a\"]': [x]}}", "no name of a label"),
        ("select: {tiers: []}", "empty list"),
        ("select: {tiers: [4]}", "1 to 3"),
        ("select: {regions: []}", "empty list"),
        ("select: {sites: [Oslo]}", "a-z"),
        ("select: {zones: [a]}", "unknown field"),
        ("select: all", "expected an object"),
        ("networks: []", "empty list"),
        ("networks: [10.20.0.1/16]", "host bits"),
        ("networks: [10.0.0.0/7]", "wider than /8"),
        ('networks: ["::/0"]', "wider than /16"),
        ("networks: [127.0.0.0/8]", "no network in which nodes live"),
        ('networks: ["fe80::/64"]', "no network in which nodes live"),
        ("networks: [224.0.0.0/8]", "no network in which nodes live"),
        ('networks: ["fd00::1%a; flush ruleset"]', "is no network"),
        ('networks: ["10.0.0.0/8; flush ruleset"]', "does not appear"),
    ],
)
def test_a_wrong_selector_is_told_by_line(select: str, detail: str) -> None:
    with pytest.raises(WorkspaceInvalid) as caught:
        placed(f"segments:\n  - name: web\n  - name: database\n    {select}\n  - name: cache\n")
    fault = caught.value.faults[0]
    assert (fault.reason, fault.field.startswith("segments.yaml:4 segments[1]")) == (Reason.POLICY_DATA_INVALID, True)
    assert detail in fault.detail


def test_labels_and_networks_are_bounded() -> None:
    labels = ", ".join(f"l{number}: [x]" for number in range(33))
    networks = ", ".join(f"10.{number // 256}.{number % 256}.0/24" for number in range(2100))
    text = SEGMENTS + f"  - {{name: wide, select: {{labels: {{{labels}}}}}, networks: [{networks}]}}\n"
    with pytest.raises(WorkspaceInvalid) as caught:
        placed(text + f"  - {{name: wider, networks: [{networks}]}}\n")
    assert [fault.field for fault in caught.value.faults] == ["segments.yaml:3 segments"] * 2


def test_only_streams_lead_to_segments() -> None:
    with pytest.raises(WorkspaceInvalid, match="only a stream leads to a node"):
        placed(routes=ROUTES.replace("segments: [database]}", "segments: [database], to: [web]}"))
    with pytest.raises(WorkspaceInvalid, match="'moon' is none of"):
        placed(routes=ROUTES.replace("to: [database,", "to: [moon,"))


PLACES = {("identity", name) for name in ("region", "site", "labels")} | {("target", "region"), ("target", "site")}


@pytest.mark.parametrize(
    ("select", "read"),
    [
        ("", set()),
        (", select: {regions: [eu]}", {("identity", "region"), ("target", "region")}),
        (", select: {sites: [s1], regions: [eu]}", PLACES - {("identity", "labels")}),
        (", select: {labels: {role: [db]}}", {("identity", "labels", "role"), ("target", "labels", "role")}),
    ],
)
def test_only_what_selectors_name_is_in_a_decision_s_key(select: str, read: set[tuple[str, ...]]) -> None:
    """So that nodes which differ in nothing else share their decisions."""
    found = compiled(placed(f"segments: [{{name: web}}, {{name: database{select}}}, {{name: cache}}]"))
    reads = {path for path in found.reads if path[1:2] and path[1] in {"labels", "site", "region"}}
    assert reads - {("identity", "region"), ("target", "region")} == read - {
        ("identity", "region"),
        ("target", "region"),
    }
    assert read <= reads


def test_without_selectors_nothing_is_built_for_them() -> None:
    plain = workspace()
    assert not [path for path in plain.rego if path.startswith("selecting")]
    assert plain.data["workspace"].keys() == {"routes", "grants", "denies", "segments", "api"}
    assert {path for path in placed().rego if path.startswith("selecting")} == {
        "selecting.rego", "selecting_labels.rego", "selecting_sites.rego", LABEL_RULES,
    }  # fmt: skip


def test_a_label_s_name_stays_a_name() -> None:
    made = label_rules(default_policy()["selecting_label.rego"], ["role", "topology.kubernetes.io/zone"]).decode()
    assert made.count("package sallyport.segments") == 1
    assert made.count('input.identity.labels["topology.kubernetes.io/zone"]') == 1
    assert "the-label" not in made.split("package")[1]


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (stream("shell", {"segment": "web"}, DB), True),
        (stream("shell", {"segment": "web"}, DB | {"tier": 3}), False),
        (stream("shell", {"segment": "web"}, DB | {"site": "s3"}), False),
        (stream("shell", {"segment": "web"}, DB | {"labels": {}}), False),
        (stream("shell", {}, DB), False),
        (stream("shell", DB, DB), False),
        (stream("shell", DB, {"labels": {"role": "cache", "zone": "a"}}), True),
        (stream("shell", DB, {"labels": {"role": "cache", "zone": "b"}}), False),
        (stream("shell", {"region": "north"}, {"region": "north"}), True),
        (stream("sql", {"segment": "web"}, DB), True),
        (stream("sql", DB, {"labels": {"role": "cache", "zone": "a"}}), False),
        (stream("sql", DB | {"segment": "web"}, {"labels": {"role": "cache", "zone": "a"}}), False),
        (query("http", path=("x",), roles=("agent",)), False),
        (query("http", path=("x",), roles=("agent",), labels={"role": "db"}, site="s1"), True),
    ],
)
def test_who_reaches_what(engine: WasmEngine, asked: Query, allowed: bool) -> None:
    found = engine.decide_now(asked)
    assert (found.allow, found.reasons) == (allowed, (Reason.GRANTED if allowed else Reason.SEGMENT_FORBIDDEN,))


# --- by a model -----------------------------------------------------------------------------------------------------
NAMES, VALUES = ("s", "t", "u"), ("a", "b")
_some = lambda values, most=2: st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)  # noqa: E731
_SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.dictionaries(st.sampled_from(["k", "l"]), _some(VALUES), min_size=1),
        "tiers": _some((1, 2, 3)),
        "regions": _some(VALUES),
        "sites": _some(VALUES),
    },
)


@dataclass(frozen=True)
class Model:
    """Segments as docs/policy.md words them."""

    reaches: Mapping[str, list[str]]
    selectors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def text(self) -> str:
        items = []
        for name in NAMES:
            select = f", select: {dict(self.selectors[name])}" if self.selectors.get(name) else ""
            items.append(f"  - {{name: {name}, reaches: {self.reaches[name]}{select}}}")
        return "segments:\n" + "\n".join(items).replace("'", "") + "\n"

    def of(self, place: Mapping[str, Any]) -> set[str]:
        found = {name for name, selector in self.selectors.items() if selector and self._selects(selector, place)}
        return found | {place["segment"]} - {""}

    def reached(self, caller: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
        pairs = itertools.product(self.of(caller), self.of(target))
        return any(there in self.reaches[here] for here, there in pairs)

    @staticmethod
    def _selects(selector: Mapping[str, Any], place: Mapping[str, Any]) -> bool:
        named = {"tiers": place["tier"], "regions": place["region"], "sites": place["site"]}
        return all(named[name] in values for name, values in selector.items() if name != "labels") and all(
            place["labels"].get(key) in values for key, values in selector.get("labels", {}).items()
        )


MODELS = st.builds(
    Model,
    st.fixed_dictionaries({name: st.lists(st.sampled_from(NAMES), max_size=2, unique=True) for name in NAMES}),
    st.fixed_dictionaries({name: st.none() | _SELECTORS for name in NAMES}),
)
NODES = st.fixed_dictionaries(
    {
        "segment": st.sampled_from(("", *NAMES)),
        "tier": st.integers(1, 3),
        "region": st.sampled_from(VALUES),
        "site": st.sampled_from(VALUES),
        "labels": st.dictionaries(st.sampled_from(["k", "l", "other"]), st.sampled_from(VALUES)),
    }
)
SHELL = "routes: [{name: shell, type: stream, service: ssh, kinds: [node]}]"
SHELL_GRANT = "roles: {agent: a}\ngrants: [{id: g, role: agent, route: shell, expires: 2030-01-01}]"


def modelled(model: Model) -> Workspace:
    return placed(model.text(), SHELL, SHELL_GRANT)


def pair_of(caller: Mapping[str, Any], target: Mapping[str, Any]) -> Query:
    asked = stream("shell", caller)
    record = replace(node("b"), **target)
    return asked._replace(target=record)


@pytest.fixture(scope="module")
def code() -> Iterator[tuple[CompiledPolicy, WasmEngine]]:
    """All rules that there are for selectors, for the labels k and l."""
    everything = Model({name: [] for name in NAMES}, {"s": {"labels": {"k": ["a"], "l": ["a"]}, "sites": ["a"]}})
    found = modelled(everything)
    made = engine_of(found)
    yield compiled(found), made
    made.stop()


@given(MODELS, st.lists(st.tuples(NODES, NODES), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_policy_does_what_the_documentation_says(
    code: tuple[CompiledPolicy, WasmEngine], model: Model, pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    engine = code[1]
    put_data(engine, dict(modelled(model).data))
    for caller, target in pairs:
        asked = pair_of(caller, target)
        assert engine.decide_now(asked).allow is model.reached(caller, target)
        assert asked.target is not None
        assert segments_of(modelled(model).data, asked.target) == model.of(target)
        told = engine.explain_now(asked.to_input())["segments"]
        assert (set(told["caller"]), set(told["target"])) == (model.of(caller), model.of(target))
        assert bool(told["ways"]) is model.reached(caller, target)


@given(MODELS, MODELS, st.lists(st.tuples(NODES, NODES), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whom_a_changed_segment_does_not_concern_keeps_its_answer(
    code: tuple[CompiledPolicy, WasmEngine],
    before: Model,
    after: Model,
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> None:
    policy, engine = code
    old, new = (replace(policy, data=modelled(model).data) for model in (before, after))
    difference = PolicyDifference(old, new)
    for caller, target in pairs:
        asked = pair_of(caller, target)
        put_data(engine, dict(old.data))
        answer = engine.decide_now(asked)
        put_data(engine, dict(new.data))
        assert difference.concerns(asked) or engine.decide_now(asked) == answer


def changed(policy: CompiledPolicy, segments: str) -> PolicyDifference:
    return PolicyDifference(policy, replace(policy, data=placed(segments).data))


def test_a_changed_selector_concerns_those_who_meet_what_it_stands_under() -> None:
    policy, web = compiled(placed()), {"segment": "web"}
    narrower = changed(policy, SEGMENTS.replace("[replica, db]", "[replica]"))
    assert narrower.concerns(stream("shell", web, DB))
    assert narrower.concerns(stream("shell", DB, {}))
    for other in ({}, {"labels": {"role": "replica"}}, {"labels": {"zone": "db"}}, {"site": "attic"}):
        assert not narrower.concerns(stream("shell", web, other))
    elsewhere = changed(policy, SEGMENTS.replace("sites: [attic]", "sites: [cellar]"))
    assert not elsewhere.concerns(stream("shell", web, DB))
    assert elsewhere.concerns(stream("shell", {"site": "cellar"}, DB))


def test_changed_networks_concern_nobody() -> None:
    difference = changed(compiled(placed()), SEGMENTS.replace("10.20.1.0/24, ", ""))
    assert difference.routes == frozenset()
    assert not difference.concerns(stream("shell", {"segment": "web"}, DB))


@pytest.mark.parametrize(
    ("segments", "caller", "target"),
    [
        (SEGMENTS.replace("[replica, db]", "[replica]"), {"segment": "web"}, DB),
        (SEGMENTS.replace("regions: [eu]", "regions: [us]"), {"segment": "web"}, DB),
        (SEGMENTS.replace("    reaches: [database]\n", ""), {"segment": "web"}, DB),
        (SEGMENTS, {"segment": "cache"}, DB),
        (SEGMENTS, {"segment": "web"}, DB | {"labels": {"role": "retired"}}),
        (SEGMENTS, {"segment": "web"}, DB | {"tier": 3}),
    ],
)
def test_a_stream_that_was_open_is_found_and_refused(
    segments: str, caller: Mapping[str, Any], target: Mapping[str, Any]
) -> None:
    """Row "open stream outlives permission: segment change": by a revision, which the difference finds, or by either
    node's record, whose streams are decided again whatever changed in it."""
    asked, then = stream("shell", {"segment": "web"}, DB), stream("shell", caller, target)
    first, second = engine_of(placed()), engine_of(placed(segments))
    try:
        assert first.decide_now(asked).allow
        assert second.decide_now(then).reasons == (Reason.SEGMENT_FORBIDDEN,)
    finally:
        first.stop()
        second.stop()
    if segments != SEGMENTS:
        assert changed(compiled(placed()), segments).concerns(asked)


def test_services_and_operators_are_where_their_record_says(engine: WasmEngine) -> None:
    asked = stream("shell", {"segment": "web"}, DB)
    operator = replace(asked.identity, id=replace(asked.identity.id, kind=Kind.OPERATOR), tier=0)
    assert engine.decide_now(asked._replace(identity=operator)).allow
    by_selector = replace(operator, segment="", region="north")
    assert not engine.decide_now(stream("shell", {}, {"region": "north"})._replace(identity=by_selector)).allow

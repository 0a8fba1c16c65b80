"""What a new revision's data changes for a query: what of `data` a policy reads, and that nothing else changes an
answer, by the real engine."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.difference import MISSING, PolicyDifference, reader
from policies.engine import CompiledPolicy
from policies.model import Answer, Query
from policies.projection import ALL_DATA, DataReads, data_reads_of
from policies.wasm import WasmEngine
from tests.support import randompolicies
from tests.support.engines import compiled, put_data, small, wasm
from tests.support.policy import starter
from tests.support.queries import QUERIES as ANY_QUERIES
from tests.support.workspaces import query

POLICIES, CHANGES, QUERIES = 16, 25, 12
ROUTE, SEGMENT = ("route",), ("identity", "segment")


@pytest.mark.parametrize(
    ("rules", "reads"),
    [
        ("decision := 1", ()),
        ("decision := data.a.b", (("a", "b"),)),
        ("decision := data.a[input.route]", (("a", ROUTE),)),
        ("decision := data.a[input.route].b[input.identity.segment].c", (("a", ROUTE, "b", SEGMENT, "c"),)),
        ("decision := x if { k := input.route; x := data.a[k] }", (("a", ROUTE),)),
        # Whatever is not for certain one place of `input` is any key.
        ("decision := x if { some k in input.identity.roles; x := data.a[k] }", (("a",),)),
        ("decision := x if { some k; x := data.a[k] }", (("a",),)),
        ("decision := data.a[lower(input.route)]", (("a",),)),
        ("decision := data.a[k]\nk := input.route", (("a",),)),
        ('decision := data.a[k]\nk := input.route if input.x else := "b"', (("a",),)),
        ("decision := data.a[data.b]", (("a",), ("b",))),
        ("decision := f(input.route)\nf(k) := data.a[k]", (("a",),)),
        ("decision := count(data.a)", (("a",),)),
        ("decision := object.get(data.a, input.route, 1)", (("a",),)),
        # `with` puts other documents in the place of these.
        ("decision if d with input.route as 1\nd if data.a[input.route]", ALL_DATA),
        ("decision if d with data.b as 1\nd if data.a[input.route]", ALL_DATA),
    ],
)
def test_reads(rules: str, reads: DataReads) -> None:
    assert compiled(rules).data_reads == reads


def test_a_key_of_one_block_is_not_that_of_another() -> None:
    rules = "decision if { x := input.route; data.a[x] }\ndecision if { some y in input.list; data.b[y] }"
    assert compiled(rules).data_reads == (("a", ROUTE), ("b",))


def test_a_loop_does_not_keep_what_a_local_was_before_it() -> None:
    """A plan in which a loop's body gives the key's local another value for its next turn."""
    step = {"source": {"type": "local", "value": 0}, "key": {"type": "string_index", "value": 0}, "target": 2}
    by_key = {"source": {"type": "local", "value": 1}, "key": {"type": "local", "value": 2}, "target": 5}
    again = {"source": {"type": "local", "value": 4}, "target": 2}
    body = {"stmts": [{"type": "DotStmt", "stmt": by_key}, {"type": "AssignVarStmt", "stmt": again}]}
    scan = {"source": 0, "key": 3, "value": 4, "block": body}
    blocks = [{"stmts": [{"type": "DotStmt", "stmt": step}, {"type": "ScanStmt", "stmt": scan}]}]
    plan = {"static": {"strings": [{"value": "route"}]}, "plans": {"plans": [{"name": "p", "blocks": blocks}]}}
    assert data_reads_of(plan, "p") == ALL_DATA


def test_the_default_policy_is_asked_by_route_and_segment() -> None:
    reads = compiled_starter().data_reads
    assert ("workspace", "grants", ROUTE) in reads
    assert ("workspace", "routes", ROUTE) in reads
    assert ("workspace", "segments", SEGMENT) in reads
    assert all(len(path) > 2 for path in reads)


def compiled_starter() -> CompiledPolicy:
    from policies.compile import compile_policy
    from policies.settings import CompileSettings

    return compile_policy(starter().rego, starter().data, CompileSettings())


def test_other_code_concerns_everybody() -> None:
    before = small()
    after = replace(before, rego={**before.rego, "more.rego": b"package sallyport.more\n"})
    difference = PolicyDifference(before, after)
    assert difference.routes is None
    assert difference.concerns(query(route="r"))


def test_the_same_again_concerns_nobody() -> None:
    difference = PolicyDifference(small(), replace(small(), data=copy.deepcopy(small().data)))
    assert difference.routes == frozenset()
    assert not difference.concerns(query(route="r"))


def test_a_grant_concerns_those_on_its_route() -> None:
    before = small()
    data: Any = copy.deepcopy(before.data)
    data["workspace"]["grants"]["short"]["agent"][0]["ends"] += 1
    difference = PolicyDifference(before, replace(before, data=data))
    assert difference.routes == {"short"}
    assert difference.concerns(query(route="short"))
    assert not difference.concerns(query(route="r"))
    del data["workspace"]["grants"]["r"]
    assert PolicyDifference(before, replace(before, data=data)).routes == {"r", "short"}


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0, False), (None, "")])
def test_values_of_other_types_are_other_values(one: object, other: object) -> None:
    before = replace(small(), data={"workspace": {"grants": {"r": one}}})
    after = replace(before, data={"workspace": {"grants": {"r": other}}})
    assert PolicyDifference(before, after).routes == {"r"}


PLACES = [
    ("route",),
    *(
        (end, name)
        for end in ("identity", "target")
        for name in ("tier", "region", "site", "segment", "name", "labels")
    ),
    *((end, "labels", key) for end in ("identity", "target") for key in ("a", "")),
    ("identity", "labels", "a", "b"),
    ("staleness",),
    ("nothing", "at", "all"),
]


@given(ANY_QUERIES, st.sampled_from(PLACES))
def test_a_place_is_read_as_it_stands_in_the_document(asked: Query, place: tuple[str, ...]) -> None:
    found: Any = asked.to_input()
    for key in place:
        found = found.get(key, MISSING) if isinstance(found, dict) else MISSING
    assert reader(place)(asked) == found


@pytest.mark.parametrize("seed", range(POLICIES))
def test_whom_a_change_of_data_does_not_concern_gets_the_same_answer(seed: int) -> None:
    """Random policies, random changes of their data, random queries; each answered before and after."""
    policy, chance = _random_policy(seed), random.Random(seed)
    data: dict[str, Any] = copy.deepcopy(randompolicies.DATA)
    with wasm(policy) as engine:
        queries = [_random_query(chance) for _ in range(QUERIES)]
        before = _answers(engine, data, queries)
        for _ in range(CHANGES):
            changed = randompolicies.mutation(chance, data)
            difference = PolicyDifference(replace(policy, data=data), replace(policy, data=changed))
            after = _answers(engine, changed, queries)
            for each, old, new in zip(queries, before, after, strict=True):
                concerned = difference.concerns(each)
                assert concerned or old == new, (data, changed, each, policy.data_reads)
                assert not concerned or difference.routes is None or each.route in difference.routes
            data, before = changed, after


def test_the_random_policies_are_concerned_by_some_changes_and_not_by_others() -> None:
    """The property above would hold of a difference that always concerns everybody, and of policies without data."""
    spared = differing = 0
    for seed in range(6):
        policy, chance = _random_policy(seed), random.Random(seed)
        queries = [_random_query(chance) for _ in range(QUERIES)]
        with wasm(policy) as engine:
            before = _answers(engine, dict(randompolicies.DATA), queries)
            for _ in range(10):
                changed = randompolicies.mutation(chance, copy.deepcopy(randompolicies.DATA))
                difference = PolicyDifference(policy, replace(policy, data=changed))
                spared += sum(not difference.concerns(each) for each in queries)
                after = _answers(engine, changed, queries)
                differing += sum(old != new for old, new in zip(before, after, strict=True))
    assert spared > 50
    assert differing > 20


def _random_policy(seed: int) -> CompiledPolicy:
    for attempt in range(seed * 1000, seed * 1000 + 40):
        try:
            return compiled(randompolicies.data_policy(attempt), randompolicies.DATA)
        except Fault:
            continue
    raise AssertionError("OPA refuses forty random policies in a row")


def _random_query(chance: random.Random) -> Query:
    key = lambda: chance.choice((*randompolicies.KEYS, "x", "elsewhere"))  # noqa: E731  # a draw, not a function
    return query(route=key(), segment=key(), site=key(), method=key(), tier=chance.randrange(3))


def _answers(engine: WasmEngine, data: dict[str, Any], queries: list[Query]) -> list[Answer]:
    """By the same code over other data."""
    put_data(engine, data)
    found = [engine.decide_now(each) for each in queries]
    assert not any(each.reasons == (Reason.ENGINE_TIMEOUT,) for each in found)
    return found

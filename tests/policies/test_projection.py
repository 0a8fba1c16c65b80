"""What a policy reads: the analysis of the plan, and its soundness against the real engine."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from foundation.faults import Fault
from policies.engine import CompiledPolicy
from policies.projection import EVERYTHING, Reads, reads_of
from policies.projector import project
from policies.wasm import WasmEngine
from tests.support import randompolicies
from tests.support.engines import answer, compiled, wasm

_POLICIES = 30
_MUTATIONS = 150


@pytest.mark.parametrize(
    ("rules", "reads"),
    [
        ("decision := 1", ()),
        ("decision := input.a.b", (("a", "b"),)),
        ('decision := input["a"].b', (("a", "b"),)),
        ("decision := input", EVERYTHING),
        # A path ends at its first term that is not ground.
        ("decision := input.a[input.k]", (("a",), ("k",))),
        ("decision := input.a[0]", (("a",),)),
        ("decision := x if { some x in input.a.b }", (("a", "b"),)),
        ("decision if { input.a; input.a.b.c }", (("a",),)),
        # Locals, functions and rules pass places on.
        ("decision := x.b if { x := input.a }", (("a", "b"),)),
        ("decision if { x := input.a; not x.b }", (("a", "b"),)),
        ("decision := f(input.a)\nf(x) := x.b.c", (("a", "b", "c"),)),
        ("decision := f(input.a, input.b)\nf(x, y) := x if x == y.c", (("a",), ("b", "c"))),
        ("decision := h.b\nh := input.a", (("a",),)),
        ("decision if input.a.b\ndecision if not input.c", (("a", "b"), ("c",))),
        ("decision := {k: v | some k, v in input.a; v == input.b.c}", (("a",), ("b", "c"))),
        ("decision if every x in input.a { x == input.b }", (("a",), ("b",))),
        # A builtin reads the whole of what it is given.
        ("decision := count(input.a)", (("a",),)),
        ('decision := object.get(input.a, ["b"], 1)', (("a",),)),
        ('decision := object.get(input, "a", 1)', EVERYTHING),
        # What changes `input` for a while reads everything; what changes `data` reads what it puts there.
        ("decision if d with input.a as 1\nd if input.b", EVERYTHING),
        ("decision if d with data.x as input.b\nd if data.x", (("b",),)),
        ("decision := data.x[input.route][input.role]", (("role",), ("route",))),
    ],
)
def test_reads(rules: str, reads: Reads) -> None:
    assert compiled(rules).reads == reads


def test_a_rule_chosen_at_run_time_may_read_everything() -> None:
    rules = "decision := data.sallyport.parts[input.k]\nparts.x := input.a\nparts.y := input.b"
    assert compiled(rules).reads in (EVERYTHING, (("a",), ("b",), ("k",)))


def plan(*statements: dict[str, Any]) -> dict[str, Any]:
    return {
        "static": {"strings": [{"value": "a"}]},
        "plans": {"plans": [{"name": "p", "blocks": [{"stmts": statements}]}]},
    }


def dot(target: int = 2) -> dict[str, Any]:
    key = {"type": "string_index", "value": 0}
    return {"type": "DotStmt", "stmt": {"source": {"type": "local", "value": 0}, "key": key, "target": target}}


def test_a_statement_of_a_later_opa_reads_everything() -> None:
    assert reads_of(plan(dot()), "p") == (("a",),)
    assert reads_of(plan(dot(), {"type": "TeleportStmt", "stmt": {"target": 2}}), "p") == EVERYTHING


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"static": None},
        plan({"type": "DotStmt", "stmt": {}}),
        plan({"type": "AssignVarStmt", "stmt": {"source": "x", "target": 1}}),
        {"static": {"strings": []}, **{key: value for key, value in plan(dot()).items() if key != "static"}},
    ],
)
def test_a_plan_of_another_shape_reads_everything(document: dict[str, Any]) -> None:
    assert reads_of(document, "p") == EVERYTHING


def test_a_local_used_again_is_another() -> None:
    """OPA numbers the locals of each block anew; what one of them was in a block before must not stick to it."""
    rules = "decision if { x := input.a; x.b == 1 }\ndecision if { y := data.t; y.c == input.d }"
    assert compiled(rules).reads == (("a", "b"), ("d",))


@pytest.mark.parametrize("seed", range(_POLICIES))
def test_nothing_outside_the_projection_changes_an_answer(seed: int) -> None:
    """Thousands of mutations over random policies, each answered by the real engine without a cache."""
    policy = _random_policy(seed)
    chance = random.Random(seed)
    outside = inside = 0
    with wasm(policy) as engine:
        given = randompolicies.document(chance)
        expected = _ask(engine, given)
        for number in range(_MUTATIONS * 20):
            changed = randompolicies.mutation(chance, given)
            if _key(policy, changed) == _key(policy, given):
                outside += 1
                assert _ask(engine, changed) == expected, (given, changed, policy.reads)
            elif number % 20 == 0:
                inside += _ask(engine, changed) != expected
                given, expected = changed, _ask(engine, changed)
            if outside >= _MUTATIONS:
                break
    assert outside or policy.reads == EVERYTHING


def test_the_random_policies_have_answers_that_differ() -> None:
    """The property above would hold of policies that always answer the same."""
    chance, differing = random.Random(0), 0
    for seed in range(6):
        with wasm(_random_policy(seed)) as engine:
            differing += len({_ask(engine, randompolicies.document(chance)) for _ in range(30)}) > 3
    assert differing >= 4


def _random_policy(seed: int) -> CompiledPolicy:
    """Of the random policies that OPA's type checker takes, one for this seed."""
    for attempt in range(seed * 1000, seed * 1000 + 20):
        try:
            return compiled(randompolicies.policy(attempt), randompolicies.DATA)
        except Fault:
            continue
    raise AssertionError("OPA refuses twenty random policies in a row")


def _key(policy: CompiledPolicy, document: dict[str, Any]) -> str:
    return repr([project(document, path) for path in policy.reads])


def _ask(engine: WasmEngine, document: dict[str, Any]) -> str:
    try:
        return json.dumps(answer(engine, document))
    except Fault as fault:
        return fault.reason.code

"""Every allowed builtin gives OPA's answer in Wasm: the same two thousand calls to both."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.builtins import BuiltinFault, any_prefix_match, sprintf
from policies.capabilities import HOST, NATIVE
from tests.support.engines import PATIENT, answer, compiled, wasm
from tests.support.workspaces import query


class Set(NamedTuple):
    """A set, which JSON has not."""

    literal: str


TEXTS = ("", "a", "abc", "é", "a,b", "Ab", "  x ", "a/b/c", "10.0.0.1", "😀b", "a.b")
NUMBERS = (0, 1, -1, 3, 1.5, -2.5, 1_000_000, 1 << 40, 0.1)
ARRAYS = ([], [1], ["a", "b"], ["b", "a", 1], [[1], 2], [3, 1, 2])
OBJECTS = ({}, {"a": 1}, {"a": {"b": 2}, "c": [1]}, {"b": "x"})
SETS = (Set("set()"), Set('{"a"}'), Set('{"a", "b"}'), Set('{1, "a"}'))
NESTED_SETS = (Set("set()"), Set('{{"a", "b"}, {"b"}}'))
ANY = ("", "a", "b", 0, 1, 1.5, True, False, None, [], ["a"], {}, {"a": 1})
PATTERNS = ("a", "^a.*c$", "[a-z]+", "(", "a{1,3}", "é", "(?i)AB", "\\d+", "")
CIDRS = ("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "10.0.0.1", "x", "10.0.0.0/33")
GLOBS = ("a", "*", "a*", "a/*", "**", "{a,b}", "[a-c]", "?", "a/**")

# Builtins that take the same kinds of argument, and the values of each argument.
CALLS: tuple[tuple[str, tuple[tuple[Any, ...], ...]], ...] = (
    ("abs ceil floor round", (NUMBERS,)),
    ("upper lower trim_space strings.reverse", ((*TEXTS, 1),)),
    ("is_array is_boolean is_null is_number is_object is_set is_string type_name", ((*ANY, *SETS),)),
    ("contains startswith endswith", (TEXTS, TEXTS)),
    ("trim trim_left trim_right trim_prefix trim_suffix split", (TEXTS, TEXTS)),
    ("bits.and bits.or bits.xor", ((0, 1, 6, -3, 1 << 20), (0, 1, 5, -1))),
    ("bits.lsh bits.rsh", ((0, 1, 6, 1 << 20), (0, 1, 5))),
    ("bits.negate", ((0, 1, 6, -3),)),
    ("sum product", (([], [1], [1, 2.5], [2, 3, 4]),)),
    ("max min sort array.reverse", ((*ARRAYS, ["x", 1, None, True, {}, []]),)),
    ("net.cidr_contains net.cidr_intersects", (CIDRS, CIDRS)),
    ("object.remove object.filter", (OBJECTS, ([], ["a"], ["x"]))),
    ("json.filter json.remove", (OBJECTS, ([], ["a"], ["a/b"], ["c/0"], ["x"]))),
    (
        "strings.any_prefix_match strings.any_suffix_match",
        (("", "abc", ["abc", "b"], []), ("", "a", ["a", "x"], [], [""])),
    ),
    ("array.concat", (ARRAYS, ARRAYS)),
    ("array.slice", (ARRAYS, (-1, 0, 1, 5), (0, 2, 9))),
    ("concat", ((",", "", "é"), ([], ["a"], ["a", "b"], ["a", 1]))),
    ("count", ((*TEXTS, *ARRAYS, *OBJECTS, *SETS),)),
    ("format_int", ((0, 1, 255, -255), (2, 8, 10, 16))),
    ("glob.match", (GLOBS, ([], ["/"], ["."]), TEXTS)),
    ("graph.reachable", (({"a": ["b"], "b": ["c"], "c": ["a"], "d": []},), (["a"], ["d"], ["x"], []))),
    ("intersection union", (NESTED_SETS,)),
    ("numbers.range", ((0, 3, -2), (0, 2, -4))),
    ("object.get", (OBJECTS, ("a", "x", ["a", "b"], []), (0,))),
    ("object.keys", (OBJECTS,)),
    ("object.union", (OBJECTS, OBJECTS)),
    ("regex.is_valid", ((*PATTERNS, 1),)),
    ("regex.match", (PATTERNS, TEXTS)),
    ("replace", (TEXTS, ("a", "b", "x"), ("", "y"))),
    ("strings.replace_n", (({"a": "b"}, {"a": "", "b": "a"}), TEXTS)),
    ("substring", (TEXTS, (0, 1, 9), (-1, 0, 1, 9))),
    ("to_number", (("1", "1.5", "-3", "0x1", "", "a", " 1", None, True, False, 3, "1e3"),)),
    ("sprintf", (("%v", "%s", "x%v %%"), (["a"], [True], [None]))),
    ("sprintf", (("%v",), ([0], [1.5], [-7], [0.0001], [123456.5], [1 << 40]))),
    ("sprintf", (("%d/%d",), ([0, 1], [-7, 1 << 40]))),
)
OPERATORS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    *((name, sign, SETS) for name, sign in (("and", "&"), ("or", "|"), ("set_diff", "-"))),
    *(
        (name, sign, NUMBERS)
        for name, sign in (("plus", "+"), ("minus", "-"), ("mul", "*"), ("div", "/"), ("rem", "%"))
    ),
    *((name, sign, (*ANY, *SETS)) for name, sign in (("equal", "=="), ("neq", "!="), ("lt", "<"), ("lte", "<="))),
    *((name, sign, (*ANY, *SETS)) for name, sign in (("gt", ">"), ("gte", ">="))),
)
LANGUAGE = {
    "assign": "1 if { x := input.one; x == 1 }",
    "eq": "x if { [x, 2] = input.two }",
    "internal.member_2": "[x | some x in [1, 2, 3]; x in input.two]",
    "internal.member_3": '1 if { "a", 1 in input.object }',
    "walk": "sort([[p, v] | walk(input.object, [p, v])])",
}


_GROUP = 50
_SETS = frozenset({"and", "or", "set_diff", "union", "intersection", "object.keys", "graph.reachable"})  # without order


class Cases:
    """One policy that makes all calls. Arguments stand in `input`, so that the compiler cannot work the calls out."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rules = [f'group0["{name}"] := {body}' for name, body in LANGUAGE.items()]
        self.document: dict[str, Any] = {"v": [], "one": 1, "two": [1, 2], "object": {"a": 1, "b": {"c": [1]}}}
        for names, arguments in CALLS:
            for name, chosen in itertools.product(names.split(), itertools.product(*arguments)):
                self._add(name, f"{name}({', '.join(map(self._term, chosen))})")
        for name, sign, values in OPERATORS:
            for left, right in itertools.product(values, values):
                if (name, left, right) == ("div", 0, 0):
                    continue  # ends the evaluation: see below
                self._add(name, f"{self._term(left)} {sign} {self._term(right)}")
        # A rule's bodies become one function, and wasmtime bounds the size of a function.
        groups = ", ".join(f"group{number}" for number in range(1 + len(self.names) // _GROUP))
        self.rules = "\n".join([f"decision := [{groups}]", *self._rules])

    def _add(self, name: str, expression: str) -> None:
        if name in _SETS:
            expression = f"sort({expression})"
        number = len(self.names)
        self._rules.append(f'group{number // _GROUP}["{number}"] := x if {{ x := {expression} }}')
        self.names.append(f"{name}: {expression}")

    def _term(self, value: Any) -> str:
        if isinstance(value, Set):
            return value.literal
        self.document["v"].append(value)
        return f"input.v[{len(self.document['v']) - 1}]"


def test_every_allowed_builtin_is_called() -> None:
    called = {name for names, _ in CALLS for name in names.split()} | {name for name, *_ in OPERATORS} | set(LANGUAGE)
    assert called == NATIVE | HOST


def test_wasm_answers_as_opa_does(tmp_path: Path) -> None:
    cases = Cases()
    policy = compiled(cases.rules)
    with wasm(policy, replace(PATIENT, decision_timeout=60.0)) as engine:
        ours = _merged(answer(engine, cases.document))
    (tmp_path / "policy.rego").write_bytes(policy.rego["one.rego"])
    (tmp_path / "input.json").write_text(json.dumps(cases.document))
    command = ["opa", "eval", "--data=policy.rego", "--input=input.json", "data.sallyport.decision"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = _merged(json.loads(done.stdout)["result"][0]["expressions"][0]["value"])
    differing = {
        cases.names[int(key)] if key.isdigit() else key: (ours.get(key), theirs.get(key))
        for key in {*ours, *theirs}
        if _typed(ours.get(key)) != _typed(theirs.get(key))
    }
    assert differing == {}
    assert len(theirs) > 1_500


def _merged(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for group in groups for key, value in group.items()}


def _typed(value: Any) -> str:
    """A text in which true is not 1, 1.0 is 1 (Rego has one kind of number) and numbers have fifteen digits."""
    return json.dumps(_rounded(value), sort_keys=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.15g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("%v", []),
        ("%v", ["a", "b"]),
        ("x", ["a"]),
        ("%v", [None, None]),
        ("%d", ["a"]),
        ("%d", [1.5]),
        ("%d", [True]),
        ("%s", [1]),
        ("%v", [[1]]),
        ("%v", [{}]),
        ("%v", [1e6]),
        ("%v", [1e-9]),
        ("%5d", [1]),
        ("%", []),
        ("%x", [1]),
        (1, []),
        ("%v", "a"),
    ],
)
def test_sprintf_halts_where_go_would_write_what_is_wrong(form: Any, values: Any) -> None:
    with pytest.raises(BuiltinFault):
        sprintf(form, values)


@pytest.mark.parametrize("arguments", [(1, "a"), ("a", 1), (["a", 1], "a"), ("a", [None]), ({}, "a")])
def test_a_wrong_argument_halts(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(BuiltinFault):
        any_prefix_match(*arguments)


def test_nothing_by_nothing_denies() -> None:
    """For OPA 0 / 0 is undefined; Wasm ends the evaluation."""
    with wasm(compiled("decision := 1 if not input.zero / input.zero")) as engine, pytest.raises(Fault):
        answer(engine, {"zero": 0})


def test_a_builtin_that_halts_denies_behind_a_not() -> None:
    """For OPA the call would be undefined and its `not` true."""
    rules = (
        'decision := {"allow": true, "reasons": ["granted"]} if not strings.any_prefix_match(input.route, input.now)'
    )
    with wasm(compiled(rules)) as engine:
        assert engine.decide_now(query()).reasons == (Reason.ENGINE_FAILED,)

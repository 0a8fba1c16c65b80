"""Random policies, documents and mutations: every way of Rego to reach into `input`, with answers that often differ."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

KEYS = ("a", "b", "c", "d", "e")
VALUES: tuple[Any, ...] = (0, 1, 1.5, True, False, None, "a", "b", "x", "", [], {})
DATA = {"tables": {"a": {"b": 1, "x": ["a", "b"]}, "b": {"a": "x"}, "x": [1, "a", {"c": 2}]}, "list": ["a", 1, "x"]}
QUERY_REFERENCES = [
    "input.now",
    "input.identity",
    "input.identity.id",
    "input.identity.kind",
    "input.identity.name",
    "input.identity.roles",
    "input.identity.tier",
    "input.identity.site",
    "input.identity.segment",
    "input.identity.labels",
    "input.identity.labels.a",
    "input.identity.labels.b.c",
    "input.identity.versions.a",
    "input.identity.verdict",
    "input.identity.attestation",
    "input.route",
    "input.request",
    "input.request.method",
    "input.request.action",
    "input.request.path",
    "input.request.query",
    "input.staleness",
    "input.target",
    "input.target.name",
    "input.target.segment",
    "input.target.verdict",
    "input.target.labels.a",
    "input.nothing",
]
DATA_REFERENCES = [
    "data.tables.a",
    "data.tables.a.b",
    "data.tables[input.route]",
    "data.tables[input.route].a",
    "data.tables[input.identity.segment].b.x",
    "data.tables.b[input.identity.site]",
    "data.tables[input.request.method]",
    "data.tables[input.identity.tier]",
    "data.tables[input.nothing]",
    "data.list",
]
HELPERS = 2
FUNCTIONS = 2


def policy(seed: int) -> str:
    """The rules of one policy. `decision` is a set of whatever its parts find."""
    return _Writer(random.Random(seed)).policy("decision")


def query_policy(seed: int) -> str:
    """The rules of a policy over the `input` that a `Query` makes. It permits all, and what its parts find is the
    obligation."""
    answer = 'decision := {"allow": true, "reasons": ["granted"], "obligations": [{"kind": "x", "found": sort(found)}]}'
    return answer + "\n" + _Writer(random.Random(seed), QUERY_REFERENCES).policy("found")


def data_policy(seed: int) -> str:
    """As `query_policy`, and most of what it looks at is `data`."""
    answer = 'decision := {"allow": true, "reasons": ["granted"], "obligations": [{"kind": "x", "found": sort(found)}]}'
    references = [*QUERY_REFERENCES[::3], *DATA_REFERENCES * 3]
    return answer + "\n" + _Writer(random.Random(seed), references).policy("found")


def document(chance: random.Random, depth: int = 3) -> dict[str, Any]:
    """An `input` over the same keys as the policies."""
    return {key: _value(chance, depth) for key in KEYS if chance.random() < 0.85}


def mutation(chance: random.Random, given: dict[str, Any]) -> dict[str, Any]:
    """`given` with one place changed: replaced, removed, added, or only its type changed."""
    changed = copy.deepcopy(given)
    place: Any = changed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        deeper = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        if not deeper or chance.random() < 0.35:
            break
        place = place[chance.choice(deeper)]
    _change(chance, place)
    return changed


def _change(chance: random.Random, place: Any) -> None:
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if not keys or chance.random() < 0.2:
        if isinstance(place, dict):
            place[chance.choice(KEYS)] = _value(chance, 2)
        else:
            place.append(_value(chance, 1))
        return
    key = chance.choice(keys)
    way = chance.random()
    if way < 0.25:
        del place[key]
    elif way < 0.4:
        place[key] = _of_another_type(place[key])
    else:
        place[key] = _value(chance, 2)


def _of_another_type(value: Any) -> Any:
    """What some languages take for the same value."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return float(value) if value else False
    return {"": None, None: False, "a": ["a"]}.get(value, str(value)) if not isinstance(value, dict | list) else None


def _value(chance: random.Random, depth: int) -> Any:
    way = chance.random()
    if depth > 0 and way < 0.55:
        return {key: _value(chance, depth - 1) for key in KEYS if chance.random() < 0.6}
    if depth > 0 and way < 0.7:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return copy.deepcopy(chance.choice(VALUES))


class _Writer:
    """Writes one policy. Rules refer only to rules with a higher number, so that none is recursive."""

    def __init__(self, chance: random.Random, references: Sequence[str] = ()) -> None:
        self._chance = chance
        self._references = references
        self._names = (f"v{number}" for number in range(10_000))
        self._level = 0

    def policy(self, name: str) -> str:
        parts = [f"{name} contains [{number}, x] if {{ {self._perhaps()}x := {self._term()} }}" for number in range(4)]
        parts += [f"{name} contains x if x := {self._ground()}" for _ in range(4 if self._references else 0)]
        for number in range(HELPERS):
            self._level = number + 1
            parts += self._helper(number)
        self._level = HELPERS
        parts += [self._function(number) for number in range(FUNCTIONS)]
        return "\n".join(parts)

    def _helper(self, number: int) -> list[str]:
        name = f"h{number}"
        kinds = (
            lambda: [f"{name} := {self._term()}"],
            lambda: [
                f"default {name} := false",
                f"{name} := x if {{ {self._body()}; x := {self._term()} }} "
                f"else := {self._term()} if {{ {self._body()} }}",
            ],
            lambda: [
                f"{name} contains x if {{ {self._body()}; x := {self._term()} }}",
                f"{name} contains 1 if {{ {self._body()} }}",
            ],
            lambda: [f"{name} if {{ {self._body()} }}", f"{name} if {{ {self._body()} }}"],
        )
        return self._chance.choice(kinds)()

    def _function(self, number: int) -> str:
        use = self._chance.choice(("x.a", "x", "x.b.c", "x[y]", "y.d", "count(y)", "x == y", "x[_]", "not x.a"))
        result = self._chance.choice(("x", "y", "x.b", "[y.a]", "1"))
        return f"f{number}(x, y) := z if {{ {use}; z := {result} }}"

    def _perhaps(self) -> str:
        return f"{self._body()}; " if self._chance.random() < 0.5 else ""

    def _body(self) -> str:
        return "; ".join(self._statement() for _ in range(self._chance.randint(1, 2)))

    def _statement(self) -> str:
        name = next(self._names)
        kinds = [
            lambda: f"not {self._ref()}",
            lambda: f"{self._ref()} == {self._term()}",
            lambda: f"some {name} in {self._open()}; {name} != {self._term()}",
            lambda: f"{name} := {self._open()}; {name}.{self._key()}",
            lambda: f"{name} := {self._open()}; not {name}.{self._key()}",
            lambda: f"every {name} in {self._open()} {{ {name} != {self._constant()} }}",
            lambda: f"{self._test()}({self._open()})",
            lambda: f"{self._constant()} in {self._open()}",
            lambda: f"some {name}; {self._open()}[{name}] == {self._constant()}",
            self._ref,
        ]
        if self._level < HELPERS:
            kinds.append(lambda: f"{self._rule()} with data.tables.a as {self._ref()}")
            if self._chance.random() < 0.15:
                kinds.append(lambda: f"{self._rule()} with {self._ground()} as {self._constant()}")
        return self._chance.choice(kinds)()

    def _term(self) -> str:
        name = next(self._names)
        kinds = [
            self._constant,
            lambda: f"{{{name} | some {name} in {self._open()}}}",
            lambda: f"count([1 | some _ in {self._open()}])",
            lambda: f"object.get({self._open()}, {self._constant()}, 7)",
            lambda: f"[{self._ref()}, {self._constant()}]",
            lambda: f"type_name({self._open()})",
            self._ref,
            self._ref,
        ]
        if self._level < HELPERS:
            kinds.append(lambda: f"f{self._chance.randrange(FUNCTIONS)}({self._ref()}, {self._ref()})")
        return self._chance.choice(kinds)()

    def _ref(self) -> str:
        """Anything. OPA knows the type of a rule and refuses to look into what is no object; so see `_open`."""
        return self._rule() if self._level < HELPERS and self._chance.random() < 0.35 else self._open()

    def _open(self) -> str:
        """Something whose type OPA does not know."""
        way = self._chance.random()
        if way < 0.8:
            return self._ground()
        if way < 0.87:
            return f"{self._ground()}[{self._ground()}]"
        if way < 0.94:
            return f"data.tables[{self._ground()}]"
        return f"{self._ground()}[0]" if way < 0.995 else "input"

    def _rule(self) -> str:
        return f"h{self._chance.randrange(self._level, HELPERS)}"

    def _ground(self) -> str:
        if self._references:
            return self._chance.choice(self._references)
        return "input" + "".join(self._step() for _ in range(self._depth()))

    def _step(self) -> str:
        return f'["{self._key()}"]' if self._chance.random() < 0.2 else f".{self._key()}"

    def _depth(self) -> int:
        return self._chance.choice((1, 2, 2, 2, 3, 3))

    def _key(self) -> str:
        return self._chance.choice(KEYS)

    def _constant(self) -> str:
        return self._chance.choice(('"a"', '"b"', '"x"', "0", "1", "true", "null"))

    def _test(self) -> str:
        return self._chance.choice(("is_string", "is_object", "is_array", "is_number", "is_null", "is_boolean"))

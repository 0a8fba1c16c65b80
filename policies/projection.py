"""What of `input` a compiled policy can read, from OPA's plan, the form that Wasm is compiled from.

Laws held here:
- the projection is sound: changing anything of `input` outside it cannot change an answer;
- a read path ends at its first non-ground term and then means the whole subtree; a bare `input` means everything;
- a statement that this module does not know reads everything.

The analysis asks of each local variable which places of `input` it may be, without regard to the order of statements
or to who calls a function. A constant `DotStmt` moves from a place to one below it; every other use of a place reads
all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]
Reads = tuple[Path, ...]
EVERYTHING: Reads = ((),)
_MAX_DEPTH = 16  # no document that we make is deeper; a place below reads what stands above it
_INPUT, _DATA = 0, 1  # the locals that every plan and function is given

# The operands that each statement only inspects or stores: whatever place of `input` they are is read whole.
_READERS: Mapping[str, tuple[str, ...]] = {
    "ArrayAppendStmt": ("value",),
    "EqualStmt": ("a", "b"),
    "NotEqualStmt": ("a", "b"),
    "IsArrayStmt": ("source",),
    "IsObjectStmt": ("source",),
    "IsSetStmt": ("source",),
    "LenStmt": ("source",),
    "ObjectInsertStmt": ("key", "value"),
    "ObjectInsertOnceStmt": ("key", "value"),
    "ObjectMergeStmt": ("a", "b"),
    "ResultSetAddStmt": ("value",),
    "ScanStmt": ("source",),
    "SetAddStmt": ("value",),
    "AssignVarOnceStmt": ("source",),  # compares when the target is set already
    # These look at no value. Whether a local is defined follows from the steps that gave it its value.
    "AssignIntStmt": (),
    "BreakStmt": (),
    "BlockStmt": (),
    "IsDefinedStmt": (),
    "IsUndefinedStmt": (),
    "MakeArrayStmt": (),
    "MakeNullStmt": (),
    "MakeNumberIntStmt": (),
    "MakeNumberRefStmt": (),
    "MakeObjectStmt": (),
    "MakeSetStmt": (),
    "NopStmt": (),
    "NotStmt": (),
    "ResetLocalStmt": (),
}


def reads_of(plan: Mapping[str, Any], entrypoint: str) -> Reads:
    """The places of `input` that `entrypoint` can read, each as its path of keys, none below another. `plan` is the
    document of `opa build -t plan`. Whatever has another shape than expected gives `EVERYTHING`."""
    try:
        return _Analysis(plan).run(entrypoint)
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration):
        return EVERYTHING


@dataclass(slots=True)
class _Function:
    """One planned function: its parameters, its statements in any order, and the local it returns."""

    params: list[int]
    returns: int
    statements: list[tuple[str, Mapping[str, Any]]]
    places: defaultdict[int, set[Path]] = field(default_factory=lambda: defaultdict(set))


class _Analysis:
    """A fixed point over all functions that the entrypoint reaches."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._plan = plan
        self._strings = [item["value"] for item in plan["static"].get("strings") or ()]
        planned = (plan.get("funcs") or {}).get("funcs") or ()
        self._functions = {
            item["name"]: _Function(item["params"], item["return"], list(_statements(item["blocks"])))
            for item in planned
        }
        self._read: set[Path] = set()
        self._passed: set[Path] = set()
        self._changed = False

    def run(self, entrypoint: str) -> Reads:
        blocks = next(item["blocks"] for item in self._plan["plans"]["plans"] if item["name"] == entrypoint)
        main = _Function([_INPUT, _DATA], -1, list(_statements(blocks)))
        main.places[_INPUT].add(())
        reached = [main]
        self._changed = True
        while self._changed:
            self._changed = False
            for function in reached:
                for kind, statement in function.statements:
                    self._step(function, kind, statement)
            reached = self._reached(main)
        return _minimal(self._read, self._passed)

    def _step(self, function: _Function, kind: str, statement: Mapping[str, Any]) -> None:
        if kind == "DotStmt":
            self._dot(function, statement)
        elif kind == "AssignVarStmt":
            self._flow(function, statement["target"], self._places(function, statement["source"]))
        elif kind == "ReturnLocalStmt":
            self._flow(function, function.returns, function.places[statement["source"]])
        elif kind == "CallStmt":
            self._call(function, statement)
        elif kind in _READERS:
            for name in _READERS[kind]:
                self._read_whole(function, statement[name])
        else:  # CallDynamicStmt, WithStmt and whatever a later OPA brings
            self._unknown(function, kind, statement)

    def _dot(self, function: _Function, statement: Mapping[str, Any]) -> None:
        key = statement["key"]
        if key["type"] != "string_index":
            self._read_whole(function, statement["source"])
            self._read_whole(function, key)
            return
        places = self._places(function, statement["source"])
        below = {(*place, self._strings[key["value"]]) for place in places if len(place) < _MAX_DEPTH}
        self._note(self._read, {place for place in places if len(place) >= _MAX_DEPTH})
        self._note(self._passed, below)
        self._flow(function, statement["target"], below)

    def _call(self, function: _Function, statement: Mapping[str, Any]) -> None:
        called = self._functions.get(statement["func"])
        arguments = statement.get("args") or ()
        if called is None or len(called.params) != len(arguments):
            for argument in arguments:
                self._read_whole(function, argument)
            return
        for param, argument in zip(called.params, arguments, strict=True):
            self._flow(called, param, self._places(function, argument))
        self._flow(function, statement["result"], called.places[called.returns])

    def _unknown(self, function: _Function, kind: str, statement: Mapping[str, Any]) -> None:
        if kind == "WithStmt" and statement["local"] != _INPUT:
            self._read_whole(function, statement["value"])
            return
        self._note(self._read, {()})

    def _places(self, function: _Function, operand: object) -> set[Path]:
        """The places that `operand` may be. An operand is a local's number, or a value with its type."""
        if isinstance(operand, int):
            return function.places[operand]
        if isinstance(operand, Mapping):
            return function.places[operand["value"]] if operand["type"] == "local" else set()
        raise TypeError("an operand of another shape")

    def _read_whole(self, function: _Function, operand: object) -> None:
        self._note(self._read, self._places(function, operand))

    def _flow(self, function: _Function, target: int, places: set[Path]) -> None:
        self._note(function.places[target], places)

    def _note(self, into: set[Path], places: set[Path]) -> None:
        if not places <= into:
            into |= places
            self._changed = True

    def _reached(self, main: _Function) -> list[_Function]:
        """`main` and every function that it calls, directly or not."""
        found, waiting, seen = [main], [main], set[str]()
        while waiting:
            for kind, statement in waiting.pop().statements:
                name = statement.get("func")
                if kind == "CallStmt" and isinstance(name, str) and name in self._functions and name not in seen:
                    seen.add(name)
                    found.append(self._functions[name])
                    waiting.append(self._functions[name])
        return found


def _statements(value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every statement below `value`, however deep in blocks."""
    if isinstance(value, Mapping):
        if "type" in value and isinstance(value.get("stmt"), Mapping):
            yield value["type"], value["stmt"]
        for item in value.values():
            yield from _statements(item)
    elif isinstance(value, list):
        for item in value:
            yield from _statements(item)


def _minimal(read: Iterable[Path], passed: Iterable[Path]) -> Reads:
    """`read`, and of the places `passed` through those that end there (only their presence was asked for), without what
    stands below another read. The presence of what stands above a read is part of its canonical form."""
    everything = {*read, *passed}
    inner = {path[:length] for path in everything for length in range(len(path))}
    whole = set(read) | (everything - inner)
    return tuple(sorted(path for path in whole if not any(path[:n] in whole for n in range(len(path)))))

"""What of `input` a compiled policy can read, from OPA's plan, the form that Wasm is compiled from.

Laws held here:
- the projection is sound: changing anything of `input` outside it cannot change an answer;
- a read path ends at its first non-ground term and then means the whole subtree; a bare `input` means everything;
- a statement that this module does not know reads everything.

The analysis follows each local variable through the plan and asks which places of `input` it may be. A constant
`DotStmt` moves from a place to one below it; every other use of a place reads all of it. Statements of a block run in
order, but any of them may leave the block: behind a block, a local may be whatever it was before or became inside. A
function is analysed once for all its callers. All of it is repeated until nothing is added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]
Places = frozenset[Path]
Reads = tuple[Path, ...]
EVERYTHING: Reads = ((),)
_NOWHERE: Places = frozenset()
_MAX_DEPTH = 16  # no document that we make is deeper; a place below reads what stands above it
_MAX_ROUNDS = 200
_INPUT, _DATA = 0, 1  # the locals that every plan and function is given

# What each statement reads whole of its operands, and which locals it gives a value that is no place of `input`.
_READS: Mapping[str, tuple[str, ...]] = {
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
    "SetAddStmt": ("value",),
    "AssignVarOnceStmt": ("source",),  # compares when the target is set already
    # These look at no value. Whether a local is defined follows from the steps that gave it its value.
    "AssignIntStmt": (),
    "BreakStmt": (),
    "IsDefinedStmt": (),
    "IsUndefinedStmt": (),
    "MakeArrayStmt": (),
    "MakeNullStmt": (),
    "MakeNumberIntStmt": (),
    "MakeNumberRefStmt": (),
    "MakeObjectStmt": (),
    "MakeSetStmt": (),
    "NopStmt": (),
    "ResetLocalStmt": (),
}


def reads_of(plan: Mapping[str, Any], entrypoint: str) -> Reads:
    """The places of `input` that `entrypoint` can read, each as its path of keys, none below another. `plan` is the
    document of `opa build -t plan`. Whatever has another shape than expected gives `EVERYTHING`."""
    try:
        return _Analysis(plan).run(entrypoint)
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration, RecursionError):
        return EVERYTHING


@dataclass(slots=True)
class _Function:
    """One planned function: its parameters, what they may be, and what may be returned."""

    params: list[int]
    blocks: Sequence[Mapping[str, Any]]
    given: list[Places]
    returned: Places = _NOWHERE


@dataclass(slots=True)
class _Scope:
    """What each local may be at this point of a block, and whatever it became in the block or below."""

    function: _Function
    now: dict[int, Places]
    became: defaultdict[int, Places] = field(default_factory=lambda: defaultdict(frozenset))

    def assign(self, local: int, places: Places) -> None:
        self.now[local] = places
        self.became[local] |= places

    def below(self) -> _Scope:
        return _Scope(self.function, dict(self.now))

    def absorb(self, became: Mapping[int, Places]) -> None:
        for local, places in became.items():
            self.now[local] = self.now.get(local, _NOWHERE) | places
            self.became[local] |= places

    def of(self, operand: object) -> Places:
        """The places that `operand` may be. An operand is a local's number, or a value with its type."""
        if isinstance(operand, int):
            return self.now.get(operand, _NOWHERE)
        if isinstance(operand, Mapping):
            return self.now.get(operand["value"], _NOWHERE) if operand["type"] == "local" else _NOWHERE
        raise TypeError("an operand of another shape")


class _Analysis:
    """A fixed point over all functions that the entrypoint reaches."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._plan = plan
        self._strings = [item["value"] for item in plan["static"].get("strings") or ()]
        planned = (plan.get("funcs") or {}).get("funcs") or ()
        self._functions = {
            item["name"]: _Function(item["params"], item["blocks"], [_NOWHERE] * len(item["params"]))
            for item in planned
        }
        self._called: dict[str, _Function] = {}
        self._carried: defaultdict[int, dict[int, Places]] = defaultdict(dict)  # from one turn of a loop to the next
        self._read: set[Path] = set()
        self._passed: set[Path] = set()
        self._changed = True

    def run(self, entrypoint: str) -> Reads:
        blocks = next(item["blocks"] for item in self._plan["plans"]["plans"] if item["name"] == entrypoint)
        self._called["the plan"] = _Function([_INPUT, _DATA], blocks, [frozenset({()}), _NOWHERE])
        for _ in range(_MAX_ROUNDS):
            if not self._changed:
                return _minimal(self._read, self._passed)
            self._changed = False
            for function in tuple(self._called.values()):
                scope = _Scope(function, dict(zip(function.params, function.given, strict=True)))
                self._blocks(scope, function.blocks)
        return EVERYTHING

    def _blocks(self, scope: _Scope, blocks: Sequence[Mapping[str, Any]]) -> None:
        for block in blocks:
            inner = scope.below()
            for item in block["stmts"]:
                self._step(inner, item["type"], item["stmt"])
            scope.absorb(inner.became)

    def _step(self, scope: _Scope, kind: str, statement: Mapping[str, Any]) -> None:
        if kind in _READS:
            for name in _READS[kind]:
                self._read_whole(scope, statement[name])
            if "target" in statement:
                scope.assign(statement["target"], _NOWHERE)
        elif kind in _STEPS:
            _STEPS[kind](self, scope, statement)
        else:  # CallDynamicStmt, and whatever a later OPA brings
            self._note(self._read, frozenset({()}))

    def _assign(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        scope.assign(statement["target"], scope.of(statement["source"]))

    def _block(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        self._blocks(scope, statement["blocks"])

    def _not(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        self._blocks(scope, [statement["block"]])

    def _with(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        if statement["local"] != _DATA:
            self._note(self._read, frozenset({()}))
        self._read_whole(scope, statement["value"])
        self._blocks(scope, [statement["block"]])

    def _scan(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        self._read_whole(scope, statement["source"])
        carried = self._carried[id(statement)]
        turn = scope.below()
        turn.absorb(carried)
        turn.assign(statement["key"], _NOWHERE)
        turn.assign(statement["value"], _NOWHERE)
        self._blocks(turn, [statement["block"]])
        for local, places in turn.became.items():
            if not places <= carried.get(local, _NOWHERE):
                carried[local] = carried.get(local, _NOWHERE) | places
                self._changed = True
        scope.absorb(turn.became)

    def _dot(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        places, key = scope.of(statement["source"]), statement["key"]
        if key["type"] != "string_index":
            self._read_whole(scope, statement["source"])
            self._read_whole(scope, key)
            scope.assign(statement["target"], _NOWHERE)
            return
        deepest = frozenset(place for place in places if len(place) >= _MAX_DEPTH)
        below = frozenset((*place, self._strings[key["value"]]) for place in places - deepest)
        self._note(self._read, deepest)
        self._note(self._passed, below)
        scope.assign(statement["target"], below)

    def _call(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        called, arguments = self._functions.get(statement["func"]), statement.get("args") or ()
        if called is None or len(called.params) != len(arguments):
            for argument in arguments:
                self._read_whole(scope, argument)
            scope.assign(statement["result"], _NOWHERE)
            return
        if statement["func"] not in self._called:
            self._called[statement["func"]] = called
            self._changed = True
        for position, argument in enumerate(arguments):
            places = scope.of(argument)
            self._changed |= not places <= called.given[position]
            called.given[position] |= places
        scope.assign(statement["result"], called.returned)

    def _return(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        places = scope.of(statement["source"])
        self._changed |= not places <= scope.function.returned
        scope.function.returned |= places

    def _read_whole(self, scope: _Scope, operand: object) -> None:
        self._note(self._read, scope.of(operand))

    def _note(self, into: set[Path], places: Places) -> None:
        if not places <= into:
            into |= places
            self._changed = True


_STEPS = {
    "AssignVarStmt": _Analysis._assign,
    "BlockStmt": _Analysis._block,
    "CallStmt": _Analysis._call,
    "DotStmt": _Analysis._dot,
    "NotStmt": _Analysis._not,
    "ReturnLocalStmt": _Analysis._return,
    "ScanStmt": _Analysis._scan,
    "WithStmt": _Analysis._with,
}


def _minimal(read: Iterable[Path], passed: Iterable[Path]) -> Reads:
    """`read`, and of the places `passed` through those that end there (only their presence was asked for), without what
    stands below another read. The presence of what stands above a read is part of its canonical form."""
    everything = {*read, *passed}
    inner = {path[:length] for path in everything for length in range(len(path))}
    whole = set(read) | (everything - inner)
    return tuple(sorted(path for path in whole if not any(path[:n] in whole for n in range(len(path)))))

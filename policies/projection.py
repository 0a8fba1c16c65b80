"""What of `input` and of `data` a compiled policy can read, from OPA's plan, the form that Wasm is compiled from.

Laws held here:
- the projection is sound: changing anything of `input` outside it cannot change an answer, nor can changing anything of
  `data` outside its own;
- a read path ends at its first non-ground term and then means the whole subtree; a bare `input` means everything. In
  `data`, a term that is for certain one place of `input` (`data.grants[input.route]`) goes on;
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
Reads = tuple[Path, ...]
DataPath = tuple[str | Path, ...]
"""A place of `data`. A key that is itself a path stands for whatever string is at that place of `input`."""
DataReads = tuple[DataPath, ...]
EVERYTHING: Reads = ((),)
ALL_DATA: DataReads = ((),)
Places = frozenset[DataPath]
_NOWHERE: Places = frozenset()
_MAX_DEPTH = 16  # no document that we make is deeper; a place below reads what stands above it
_MAX_ROUNDS = 200
_INPUT, _DATA = 0, 1  # the locals that every plan and function is given
_BROKEN = (KeyError, TypeError, IndexError, AttributeError, StopIteration, RecursionError)

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
        return tuple(tuple(str(key) for key in path) for path in _Analysis(plan, _INPUT).run(entrypoint))
    except _BROKEN:
        return EVERYTHING


def data_reads_of(plan: Mapping[str, Any], entrypoint: str) -> DataReads:
    """As `reads_of`, of `data`."""
    try:
        return _Analysis(plan, _DATA).run(entrypoint)
    except _BROKEN:
        return ALL_DATA


@dataclass(slots=True)
class _Function:
    """One planned function: its parameters, what they may be, and what may be returned."""

    params: list[int]
    blocks: Sequence[Mapping[str, Any]]
    given: list[Places]
    returned: Places = _NOWHERE


@dataclass(slots=True)
class _Scope:
    """What each local may be at this point of a block, and whatever it became in the block or below. `exact` are the
    locals that are for certain one place of `input`."""

    function: _Function
    now: dict[int, Places]
    became: defaultdict[int, Places] = field(default_factory=lambda: defaultdict(frozenset))
    exact: dict[int, Path] = field(default_factory=dict)

    def assign(self, local: int, places: Places, exact: Path | None = None) -> None:
        self.now[local] = places
        self.became[local] |= places
        self.exact.pop(local, None)
        if exact is not None:
            self.exact[local] = exact

    def below(self) -> _Scope:
        return _Scope(self.function, dict(self.now), exact=dict(self.exact))

    def absorb(self, became: Mapping[int, Places]) -> None:
        for local, places in became.items():
            self.now[local] = self.now.get(local, _NOWHERE) | places
            self.became[local] |= places
            self.exact.pop(local, None)

    def place(self, operand: object) -> Path | None:
        """The place of `input` that `operand` is for certain."""
        if isinstance(operand, Mapping):
            operand = operand["value"] if operand["type"] == "local" else None
        return self.exact.get(operand) if isinstance(operand, int) else None

    def of(self, operand: object) -> Places:
        """The places that `operand` may be. An operand is a local's number, or a value with its type."""
        if isinstance(operand, int):
            return self.now.get(operand, _NOWHERE)
        if isinstance(operand, Mapping):
            return self.now.get(operand["value"], _NOWHERE) if operand["type"] == "local" else _NOWHERE
        raise TypeError("an operand of another shape")


class _Analysis:
    """A fixed point over all functions that the entrypoint reaches. `root` is the document whose places are asked
    for: the local `_INPUT` or `_DATA`."""

    def __init__(self, plan: Mapping[str, Any], root: int) -> None:
        self._plan = plan
        self._root = root
        self._strings = [item["value"] for item in plan["static"].get("strings") or ()]
        planned = (plan.get("funcs") or {}).get("funcs") or ()
        self._functions = {
            item["name"]: _Function(item["params"], item["blocks"], [_NOWHERE] * len(item["params"]))
            for item in planned
        }
        self._called: dict[str, _Function] = {}
        self._carried: defaultdict[int, dict[int, Places]] = defaultdict(dict)  # from one turn of a loop to the next
        self._read: set[DataPath] = set()
        self._passed: set[DataPath] = set()
        self._changed = True

    def run(self, entrypoint: str) -> DataReads:
        planned = next(item for item in self._plan["plans"]["plans"] if item["name"] == entrypoint)
        given = [frozenset({()}) if local == self._root else _NOWHERE for local in (_INPUT, _DATA)]
        self._called["the plan"] = _Function([_INPUT, _DATA], planned["blocks"], given)
        for _ in range(_MAX_ROUNDS):
            if not self._changed:
                return _minimal(self._read, self._passed)
            self._changed = False
            for function in tuple(self._called.values()):
                scope = _Scope(function, dict(zip(function.params, function.given, strict=True)), exact={_INPUT: ()})
                self._blocks(scope, function.blocks)
        return ALL_DATA

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
        source = statement["source"]
        scope.assign(statement["target"], scope.of(source), scope.place(source))

    def _block(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        self._blocks(scope, statement["blocks"])

    def _not(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        self._blocks(scope, [statement["block"]])

    def _with(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        if self._root == _DATA or statement["local"] != _DATA:
            self._note(self._read, frozenset({()}))
        self._read_whole(scope, statement["value"])
        self._blocks(scope, [statement["block"]])

    def _scan(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        self._read_whole(scope, statement["source"])
        carried = self._carried[id(statement)]
        turn = scope.below()
        turn.absorb(dict.fromkeys(_assigned(statement["block"]), _NOWHERE))
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
        places, key, step = scope.of(statement["source"]), statement["key"], self._step_by(scope, statement["key"])
        if step is None:
            self._read_whole(scope, statement["source"])
            self._read_whole(scope, key)
            scope.assign(statement["target"], _NOWHERE)
            return
        deepest = frozenset(place for place in places if len(place) >= _MAX_DEPTH)
        below = frozenset((*place, step) for place in places - deepest)
        self._note(self._read, deepest)
        self._note(self._passed, below)
        above = scope.place(statement["source"])
        scope.assign(
            statement["target"], below, (*above, step) if above is not None and isinstance(step, str) else None
        )

    def _step_by(self, scope: _Scope, key: Mapping[str, Any]) -> str | Path | None:
        """The constant that `key` is, or the place of `input` that it is for certain; None when it may be anything.
        Below `input` itself only constants go on."""
        if key["type"] == "string_index":
            return str(self._strings[key["value"]])
        return scope.place(key) or None if self._root == _DATA else None

    def _call(self, scope: _Scope, statement: Mapping[str, Any]) -> None:
        called, arguments = self._functions.get(statement["func"]), statement.get("args") or ()
        if called is not None and [scope.place(each) for each in arguments[:1]] != [()]:
            self._note(self._read, frozenset({()}))  # not the `input` that was given
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

    def _note(self, into: set[DataPath], places: Places) -> None:
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


def _assigned(block: Mapping[str, Any]) -> set[int]:
    """The locals that are given a value in `block` or below."""
    found: set[int] = set()
    waiting = [block]
    while waiting:
        for item in waiting.pop()["stmts"]:
            kind, statement = item["type"], item["stmt"]
            names = ("target", "result", "local", *(("key", "value") if kind == "ScanStmt" else ()))
            found.update(statement[name] for name in names if isinstance(statement.get(name), int))
            waiting += statement.get("blocks") or ()
            if "block" in statement:
                waiting.append(statement["block"])
    return found


def _minimal(read: Iterable[DataPath], passed: Iterable[DataPath]) -> DataReads:
    """`read`, and of the places `passed` through those that end there (only their presence was asked for), without what
    stands below another read. The presence of what stands above a read is part of its canonical form."""
    everything = {*read, *passed}
    inner = {path[:length] for path in everything for length in range(len(path))}
    whole = set(read) | (everything - inner)
    least = [path for path in whole if not any(path[:n] in whole for n in range(len(path)))]
    return tuple(sorted(least, key=lambda path: [(key,) if isinstance(key, str) else key for key in path]))

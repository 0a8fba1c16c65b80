"""A ruleset as people read it: in nft's own language (nft(8)), which `nft -f` takes too. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from agent.firewall.ruleset import FAMILY, TABLE, Object


def text(ruleset: Iterable[Object]) -> str:
    """The whole table, which replaces the one before."""
    objects = tuple(ruleset)
    lines = [f"table {FAMILY} {TABLE}", f"delete table {FAMILY} {TABLE}", f"table {FAMILY} {TABLE} {{"]
    for each in (one["set"] for one in objects if "set" in one):
        lines += [f"\t{line}" for line in _set(each)]
    for each in (one["chain"] for one in objects if "chain" in one):
        rules = [one["rule"] for one in objects if "rule" in one and one["rule"]["chain"] == each["name"]]
        lines += [f"\tchain {each['name']} {{", f"\t\ttype {each['type']} hook {each['hook']} priority {each['prio']};"]
        lines += [f"\t\tpolicy {each['policy']};", *(f"\t\t{_rule(rule)}" for rule in rules), "\t}"]
    return "\n".join([*lines, "}", ""])


def _set(value: Object) -> Iterator[str]:
    yield f"set {value['name']} {{"
    yield f"\ttype {value['type']};"
    yield f"\tflags {', '.join(value['flags'])};"
    if "elem" in value:
        yield f"\telements = {{ {', '.join(map(_element, value['elem']))} }};"
    yield "}"


def _element(value: Any) -> str:
    return value if isinstance(value, str) else f"{value['prefix']['addr']}/{value['prefix']['len']}"


def _rule(rule: Object) -> str:
    words = [word for statement in rule["expr"] for word in _statement(statement)]
    return f'{" ".join(words)} comment "{rule["comment"]}"'


def _statement(statement: Object) -> Iterator[str]:
    ((kind, value),) = statement.items()
    if kind == "match":
        yield f"{_left(value['left'])} {_right(value['right'])}"
    else:
        yield kind


def _left(value: Object) -> str:
    ((kind, what),) = value.items()
    if kind == "payload":
        return f"{what['protocol']} {what['field']}"
    return f"{kind} {what['key']}"


def _right(value: Any) -> str:
    return f"{{ {', '.join(value['set'])} }}" if isinstance(value, dict) else str(value)

"""How the table in the kernel differs from the one that should be there. Pure values.

Both are brought into one form: without handles and counters, sets of addresses as merged ranges, lists that mean a set
in order. Whatever is in the table and is not known here is a difference.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.firewall.ruleset import Object
from foundation.faults import Fault
from foundation.reasons import Reason

MAX_TOLD = 8
"""How many differences are told of."""
_Range = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Count:
    """What one rule has met since the table was made."""

    chain: str
    rule: str
    packets: int
    bytes: int


@dataclass(slots=True)
class _Form:
    """A table in the one form. `rules` by chain, in order; `elements` by set; everything else by kind and name."""

    parts: dict[str, str] = field(default_factory=dict)
    elements: dict[str, list[_Range]] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)


def differences(expected: Iterable[Object], listed: Iterable[Object]) -> tuple[str, ...]:
    """What of `listed` is not as `expected`, a phrase each; empty when nothing is. Raises `Fault(FIREWALL_UNAVAILABLE)`
    when `listed` is no table's."""
    want, have = _form(expected), _form(listed)
    found = [f"{name} is missing" for name in want.parts if name not in have.parts]
    found += [f"{name} is too many" for name in have.parts if name not in want.parts]
    found += [f"{name} differs" for name, form in want.parts.items() if have.parts.get(name, form) != form]
    found += [f"set {name} holds other addresses" for name in want.elements if _hold_others(name, want, have)]
    for chain in sorted({*want.rules, *have.rules}):
        found += _rules_differ(chain, want.rules.get(chain, []), have.rules.get(chain, []))
    return tuple(found[:MAX_TOLD])


def is_framed(expected: Iterable[Object], listed: Iterable[Object]) -> bool:
    """Whether the table's sets and chains are the right ones, whatever they hold. Raises as `differences`."""
    return _form(expected).parts == _form(listed).parts


def counts(listed: Iterable[Object]) -> tuple[Count, ...]:
    """The counters of the table's rules, in order."""
    found = []
    for rule in (each["rule"] for each in listed if "rule" in each):
        for statement in rule["expr"]:
            if "counter" in statement:
                counter = statement["counter"]
                found.append(Count(rule["chain"], rule.get("comment", ""), counter["packets"], counter["bytes"]))
    return tuple(found)


def _rules_differ(chain: str, want: Sequence[str], have: Sequence[str]) -> list[str]:
    if len(want) != len(have):
        return [f"chain {chain} has {len(have)} rules instead of {len(want)}"]
    pairs = enumerate(zip(want, have, strict=True), 1)
    return [f"rule {number} of chain {chain} differs" for number, (one, other) in pairs if one != other]


def _hold_others(name: str, want: _Form, have: _Form) -> bool:
    return name in have.elements and have.elements[name] != want.elements[name]


def _form(objects: Iterable[Object]) -> _Form:
    try:
        return _read(objects)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Fault(Reason.FIREWALL_UNAVAILABLE, "nft lists what is not understood here") from error


def _read(objects: Iterable[Object]) -> _Form:
    found = _Form()
    for each in objects:
        ((kind, value),) = each.items()
        if kind == "metainfo":
            continue
        if kind == "rule":
            found.rules.setdefault(value["chain"], []).append(_spelled(_without(value, "handle", "index")))
            continue
        if kind == "set":
            found.elements[value["name"]] = _merged(value.get("elem", ()))
        found.parts[f"{kind} {value['name']}"] = _spelled(
            _without(value, "handle", *(("elem",) if kind == "set" else ()))
        )
    return found


def _without(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: _plain(part) for name, part in value.items() if name not in names}


def _plain(value: Any) -> Any:
    """`value` without counts, its sets in one order."""
    if isinstance(value, Mapping):
        if value.keys() == {"counter"}:
            return "counter"
        if value.keys() == {"set"}:
            return sorted((_plain(each) for each in value["set"]), key=_spelled)
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _merged(elements: Iterable[Any]) -> list[_Range]:
    """The addresses of a set as ranges (IP version, first, last) that neither touch nor overlap."""
    merged: list[_Range] = []
    for version, first, last in sorted(map(_range, elements)):
        if merged and merged[-1][0] == version and first <= merged[-1][2] + 1:
            merged[-1] = (version, merged[-1][1], max(last, merged[-1][2]))
        else:
            merged.append((version, first, last))
    return merged


def _range(element: Any) -> _Range:
    if isinstance(element, str):
        address = ipaddress.ip_address(element)
        return address.version, int(address), int(address)
    if element.keys() == {"prefix"}:
        network = ipaddress.ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
        return network.version, int(network[0]), int(network[-1])
    if element.keys() == {"range"}:
        first, last = map(ipaddress.ip_address, element["range"])
        return first.version, int(first), int(last)
    raise ValueError("an element of another kind")

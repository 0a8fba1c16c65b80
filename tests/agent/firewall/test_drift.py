"""What differs between the table in the kernel and the one that should be there."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.firewall.drift import MAX_TOLD, counts, differences, is_framed
from agent.firewall.ruleset import ruleset
from agent.firewall.wall import Wall, parsed
from foundation.faults import Fault
from foundation.reasons import Reason

WALL = Wall(parsed(["10.0.0.0/24", "10.0.1.0/24", "fd00::/48"]), parsed(["10.0.0.1"]))
Objects = list[dict[str, Any]]


def listed() -> Objects:
    """As nft gives it back: with handles, other counts, sets in another order and elements in another form."""
    found: Objects = [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}]
    for number, each in enumerate(copy.deepcopy(ruleset(WALL))):
        ((kind, value),) = each.items()
        value["handle"] = number
        for statement in value.get("expr", ()):
            if "counter" in statement:
                statement["counter"] = {"packets": number, "bytes": 10 * number}
            if "set" in str(statement):
                statement["match"]["right"]["set"].reverse()
        if value.get("name") == "nodes4":
            value["elem"] = [{"range": ["10.0.0.0", "10.0.0.255"]}, {"prefix": {"addr": "10.0.1.0", "len": 24}}]
        found.append({kind: value})
    return found


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(each[kind] for each in objects if kind in each and each[kind]["name"] == name)


def rules(objects: Objects, chain: str) -> Objects:
    return [each for each in objects if "rule" in each and each["rule"]["chain"] == chain]


def test_what_nft_adds_is_no_difference() -> None:
    assert differences(ruleset(WALL), listed()) == ()


def _drop_a_rule(objects: Objects) -> None:
    objects.remove(rules(objects, "output")[-1])


def _change_a_verdict(objects: Objects) -> None:
    rules(objects, "input")[-1]["rule"]["expr"][-1] = {"accept": None}


def _swap_rules(objects: Objects) -> None:
    first, last = rules(objects, "input")[0]["rule"], rules(objects, "input")[-1]["rule"]
    first["expr"], last["expr"] = last["expr"], first["expr"]


def _add_a_rule(objects: Objects) -> None:
    rule = copy.deepcopy(rules(objects, "forward")[0])
    rule["rule"]["expr"] = [{"accept": None}]
    objects.append(rule)


def _narrow_a_set(objects: Objects) -> None:
    named(objects, "set", "nodes4")["elem"] = [{"range": ["10.0.0.0", "10.0.1.254"]}]


def _empty_a_set(objects: Objects) -> None:
    del named(objects, "set", "nodes6")["elem"]


def _add_a_chain(objects: Objects) -> None:
    objects.append({"chain": {"family": "inet", "table": "sallyport", "name": "more"}})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop_a_rule, "chain output has 10 rules instead of 11"),
        (_change_a_verdict, "rule 13 of chain input differs"),
        (_swap_rules, "rule 1 of chain input differs"),
        (_add_a_rule, "chain forward has 15 rules instead of 14"),
        (_narrow_a_set, "set nodes4 holds other addresses"),
        (_empty_a_set, "set nodes6 holds other addresses"),
        (_add_a_chain, "chain more is too many"),
        (lambda objects: named(objects, "chain", "input").update(policy="drop"), "chain input differs"),
        (lambda objects: named(objects, "chain", "input").update(prio=10), "chain input differs"),
        (lambda objects: named(objects, "table", "sallyport").update(flags=["dormant"]), "table sallyport differs"),
        (lambda objects: objects.remove({"set": named(objects, "set", "reach4")}), "set reach4 is missing"),
        (lambda objects: objects.append({"flowtable": {"name": "fast"}}), "flowtable fast is too many"),
    ],
)
def test_every_change_is_told(change: Callable[[Objects], object], told: str) -> None:
    objects = listed()
    change(objects)
    assert told in differences(ruleset(WALL), objects)


@pytest.mark.parametrize(
    ("change", "framed"),
    [
        (_drop_a_rule, True),
        (_narrow_a_set, True),
        (_add_a_chain, False),
        (lambda objects: named(objects, "set", "nodes4").update(type="ipv6_addr"), False),
        (lambda objects: named(objects, "chain", "input").update(prio=10), False),
    ],
)
def test_what_sets_and_chains_hold_is_not_their_frame(change: Callable[[Objects], object], framed: bool) -> None:
    objects = listed()
    assert is_framed(ruleset(WALL), objects)
    change(objects)
    assert is_framed(ruleset(WALL), objects) is framed


def test_of_a_table_that_is_another_not_everything_is_told() -> None:
    assert 1 < len(differences(ruleset(WALL), [])) <= MAX_TOLD


@pytest.mark.parametrize(
    "objects",
    [
        [{"set": {"name": "nodes4", "elem": ["10.0.0.0/24 or so"]}}],
        [{"set": {"name": "nodes4", "elem": [{"concat": []}]}}],
        [{"set": {"name": "nodes4", "elem": [7]}}],
        [{"set": {}}],
        [{"rule": {"expr": []}}],
        [{"a": {}, "b": {}}],
        ["table"],
    ],
)
def test_what_is_no_table_is_not_judged(objects: Any) -> None:
    with pytest.raises(Fault) as caught:
        differences(ruleset(WALL), objects)
    assert caught.value.reason is Reason.FIREWALL_UNAVAILABLE


_TEXTS = st.sampled_from(
    ["name", "set", "elem", "rule", "chain", "expr", "counter", "handle", "table", "10.0.0.0/8", "a"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(_JSON, max_size=4))
def test_whatever_is_listed_differs_or_is_not_judged(objects: Any) -> None:
    with contextlib.suppress(Fault):
        assert differences(ruleset(WALL), objects)


def test_counters_are_told_by_rule() -> None:
    found = counts(listed())
    assert len(found) == len([each for each in ruleset(WALL) if "rule" in each])
    assert {each.rule for each in found} >= {"from a node", "to a node", "gateways and authority", "DHCP"}
    assert all(each.bytes == 10 * each.packets for each in found)
    assert [each for each in found if each.packets == 0] == []

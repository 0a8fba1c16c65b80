"""The ruleset as a pure function: what it holds whatever it is given, in both of its forms."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.firewall.drift import differences
from agent.firewall.ruleset import CHAINS, FAMILY, TABLE, removal, replacement, ruleset
from agent.firewall.text import text
from agent.firewall.wall import MAX_EXCEPTIONS, MAX_NETWORKS, Network, Wall, networks_of, parsed
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from tests.support.policy import MINIMAL, workspace

V4 = st.tuples(st.integers(0x0A000000, 0x0AFFFFFF), st.integers(8, 32)).map(
    lambda pair: ipaddress.ip_network((pair[0], pair[1]), strict=False)
)
V6 = st.tuples(st.integers(0xFD00 << 112, (0xFD01 << 112) - 1), st.integers(16, 128)).map(
    lambda pair: ipaddress.ip_network((pair[0], pair[1]), strict=False)
)
NETWORKS = st.lists(V4 | V6, max_size=12).map(tuple)
WALLS = st.builds(Wall, NETWORKS, NETWORKS, NETWORKS)


def sets_of(wall: Wall) -> dict[str, dict[str, Any]]:
    return {each["set"]["name"]: each["set"] for each in ruleset(wall) if "set" in each}


def holds(elements: list[Any], address: Any) -> bool:
    texts = [
        each if isinstance(each, str) else f"{each['prefix']['addr']}/{each['prefix']['len']}" for each in elements
    ]
    return any(address in ipaddress.ip_network(each) for each in texts)


@given(WALLS, V4 | V6)
def test_a_set_holds_just_the_addresses_of_its_networks(wall: Wall, network: Network) -> None:
    found, address = sets_of(wall), network.network_address
    for name, networks in (("nodes", wall.nodes), ("reach", wall.reach), ("allow", wall.allow)):
        elements = found[f"{name}{address.version}"].get("elem", [])
        assert holds(elements, address) is any(address in each for each in networks)


@given(WALLS)
def test_elements_of_a_set_do_not_overlap(wall: Wall) -> None:
    for each in sets_of(wall).values():
        pairs = [
            (text, text) if isinstance(text, str) else (text["prefix"]["addr"], None) for text in each.get("elem", [])
        ]
        assert len({first for first, _ in pairs}) == len(pairs)
    assert not [one for one in differences(ruleset(wall), ruleset(wall)) if one]


@given(WALLS)
def test_it_is_one_table_and_nothing_else(wall: Wall) -> None:
    commands = json.loads(replacement(wall))["nftables"]
    table = {"table": {"family": FAMILY, "name": TABLE}}
    assert commands[:4] == [{"metainfo": {"json_schema_version": 1}}, {"add": table}, {"delete": table}, {"add": table}]
    for command in commands[4:]:
        ((verb, each),) = command.items()
        ((_, value),) = each.items()
        assert (verb, value["family"], value["table"]) == ("add", FAMILY, TABLE)


@given(WALLS)
def test_chains_accept_and_only_the_nodes_are_dropped(wall: Wall) -> None:
    chains = [each["chain"] for each in ruleset(wall) if "chain" in each]
    assert [(each["hook"], each["policy"]) for each in chains] == [(name, "accept") for name in CHAINS]
    for rule in (each["rule"] for each in ruleset(wall) if "rule" in each):
        *matches, counter, verdict = rule["expr"]
        assert counter.keys() == {"counter"}
        if verdict == {"drop": None}:
            assert [match["match"]["right"] in ("@nodes4", "@nodes6") for match in matches] == [True]


@given(WALLS)
def test_what_comes_from_a_gateway_is_an_answer(wall: Wall) -> None:
    for rule in (each["rule"] for each in ruleset(wall) if "rule" in each):
        rights = [match["match"]["right"] for match in rule["expr"][:-2]]
        if rights[:1] in (["@reach4"], ["@reach6"]) and rule["expr"][0]["match"]["left"]["payload"]["field"] == "saddr":
            assert rights[1:] == ["established"]


@given(WALLS)
def test_in_text_it_is_names_of_ours_and_networks(wall: Wall) -> None:
    rendered = text(ruleset(wall))
    for elements in re.findall(r"elements = \{ (.*?) \};", rendered):
        for each in elements.split(", "):
            ipaddress.ip_network(each)
    rest = re.sub(r"elements = \{ .*? \};|comment \"[A-Za-z ]+\"", "", rendered)
    assert set(rest) <= set("abcdefghijklmnopqrstuvwxyzDHCP0123456789@{}=,;-_ \n\t")


@given(WALLS)
def test_a_wall_is_kept_as_it_was(wall: Wall) -> None:
    sorted_wall = Wall(parsed(map(str, wall.nodes)), parsed(map(str, wall.reach)), parsed(map(str, wall.allow)))
    fields = Fields.from_json(json.dumps(wall.to_json()).encode(), "", Reason.FIREWALL_NETWORK, max_bytes=1 << 20)
    assert Wall.parse(fields) == sorted_wall


def test_without_networks_nothing_is_blocked() -> None:
    assert "elem" not in sets_of(Wall(reach=parsed(["10.0.0.1"])))["nodes6"]
    assert json.loads(removal())["nftables"][1:] == [
        {verb: {"table": {"family": FAMILY, "name": TABLE}}} for verb in ("add", "delete")
    ]


def test_addresses_of_the_link_are_nodes_too() -> None:
    assert holds(sets_of(Wall(parsed(["10.0.0.0/8"])))["nodes6"]["elem"], ipaddress.ip_address("fe80::1"))


HOSTILE = [
    "10.0.0.0/8; flush ruleset",
    "10.0.0.0/8 }\nflush ruleset",
    "@nodes4",
    "0x0a000000",
    "10.0.0.1/8",
    "fe80::1%eth0",
    "fd00::1%a }; flush ruleset",
    "",
    " 10.0.0.0/8",
    "10.0.0.0/8\n",
    "\u0661\u0660.0.0.0/8",
    "lo",
    None,
    167772160,
    b"\x0a\x00\x00\x01",
    ["10.0.0.0/8"],
]


@pytest.mark.parametrize("given", HOSTILE)
def test_what_is_no_network_is_refused(given: Any) -> None:
    for attempt in (lambda: parsed([given]), lambda: networks_of({"workspace": {"networks": {"s": [given]}}})):
        with pytest.raises(Fault) as caught:
            attempt()
        assert caught.value.reason is Reason.FIREWALL_NETWORK


@pytest.mark.parametrize(
    "nodes", [["0.0.0.0/0"], ["10.0.0.0/7"], ["::/0"], ["2000::/3"], ["127.0.0.0/8"], ["::1"], ["ff02::/16"]]
)
def test_this_machine_does_not_cut_itself_off(nodes: list[str]) -> None:
    with pytest.raises(Fault) as caught:
        Wall(parsed(nodes))
    assert caught.value.reason is Reason.FIREWALL_NETWORK


@pytest.mark.parametrize("networks", [[], "10.0.0.0/8", {"s": "10.0.0.0/8"}, {"s": {"10.0.0.0/8": 1}}])
def test_networks_stand_in_lists_by_segment(networks: Any) -> None:
    with pytest.raises(Fault) as caught:
        networks_of({"workspace": {"networks": networks}})
    assert caught.value.reason is Reason.FIREWALL_NETWORK


def test_a_wall_is_bounded() -> None:
    many = tuple(ipaddress.ip_network((0x0A000000 + number, 32)) for number in range(MAX_NETWORKS + 1))
    for attempt in (lambda: Wall(many), lambda: Wall(reach=many[: MAX_EXCEPTIONS + 1])):
        with pytest.raises(Fault):
            attempt()


def test_the_networks_are_those_of_the_workspace() -> None:
    segments = (
        'segments: [{name: a, networks: ["fd00::/48", 10.2.0.0/16]}, {name: b, networks: [10.1.0.0/16]}, {name: c}]'
    )
    found = networks_of(workspace(segments=segments).data)
    assert found == parsed(["10.1.0.0/16", "10.2.0.0/16", "fd00::/48"])
    assert networks_of(workspace(segments=MINIMAL["segments.yaml"].decode()).data) == ()
    assert networks_of({}) == ()

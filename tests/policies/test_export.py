"""Segments as network policy: nothing in, nothing out but to gateways and DNS, byte for byte the same."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.cli import app
from policies.export import Format, Gateways, export
from tests.support.policy import MINIMAL, STARTER, workspace

GOLDEN = Path(__file__).with_name("golden")
GATEWAYS = Gateways.parse(["10.0.0.5", "2001:db8::/64"], ["app=sallyport"], "security", [8443])
SEGMENTS = ["lab", "edge", "a_b"]


def rows(segments: Iterable[str]) -> dict[str, Any]:
    return {"segments": {segment: [] for segment in segments}}


def documents(form: Format, segments: list[str] = SEGMENTS, gateways: Gateways = GATEWAYS) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(export(rows(segments), gateways, form)))


@pytest.mark.parametrize("form", Format)
def test_it_is_what_it_was(form: Format) -> None:
    assert export(rows(SEGMENTS), GATEWAYS, form) == (GOLDEN / f"segments-{form.value}.yaml").read_text()


@pytest.mark.parametrize("form", Format)
def test_in_whatever_order_the_segments_come(form: Format) -> None:
    assert len({export(rows(order), GATEWAYS, form) for order in itertools.permutations(SEGMENTS)}) == 1


def test_kubernetes_lets_nothing_in_and_out_to_gateways_and_dns_alone() -> None:
    deny, *segments = documents(Format.KUBERNETES)
    assert deny["spec"]["podSelector"] == {"matchExpressions": [{"key": "sallyport-segment", "operator": "Exists"}]}
    assert (deny["spec"]["ingress"], deny["spec"]["egress"]) == ([], [])
    for each in [deny, *segments]:
        assert (each["apiVersion"], each["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
        assert each["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert each["spec"]["ingress"] == []
    for each in segments:
        gateways, dns = each["spec"]["egress"]
        assert gateways["to"] == [
            {"ipBlock": {"cidr": "10.0.0.5/32"}},
            {"ipBlock": {"cidr": "2001:db8::/64"}},
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "security"}},
                "podSelector": {"matchLabels": {"app": "sallyport"}},
            },
        ]
        assert gateways["ports"] == [{"port": 8443, "protocol": "TCP"}]
        assert {port["port"] for port in dns["ports"]} == {53}
        assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}


def test_cilium_lets_nothing_in_and_out_to_gateways_and_dns_alone() -> None:
    deny, *segments = documents(Format.CILIUM)
    assert (deny["spec"]["ingress"], deny["spec"]["egress"]) == ([{}], [{}])
    for each in segments:
        assert (each["apiVersion"], each["kind"]) == ("cilium.io/v2", "CiliumNetworkPolicy")
        assert each["spec"]["ingress"] == [{}]
        networks, pods, dns = each["spec"]["egress"]
        assert networks["toCIDR"] == ["10.0.0.5/32", "2001:db8::/64"]
        assert pods["toEndpoints"] == [
            {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "security", "k8s:app": "sallyport"}}
        ]
        assert networks["toPorts"] == pods["toPorts"] == [{"ports": [{"port": "8443", "protocol": "TCP"}]}]
        assert {port["port"] for port in dns["toPorts"][0]["ports"]} == {"53"}


@pytest.mark.parametrize("form", Format)
@settings(max_examples=40, deadline=None)
@given(
    segments=st.lists(
        st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?(\.[_-]?[a-z0-9])?", fullmatch=True), unique=True, max_size=6
    )
)
def test_every_segment_has_a_policy_with_a_name_of_its_own(form: Format, segments: list[str]) -> None:
    _, *found = documents(form, segments)
    selectors = [each["spec"].get("podSelector") or each["spec"]["endpointSelector"] for each in found]
    assert [each["matchLabels"]["sallyport-segment"] for each in selectors] == sorted(segments)
    names = [each["metadata"]["name"] for each in found]
    assert len(set(names)) == len(names)
    assert not any("_" in name or ".-" in name or "-." in name for name in names)


@pytest.mark.parametrize(
    ("networks", "labels", "namespace", "field"),
    [
        ([], [], "", "gateway"),
        (["gateway.example"], [], "", "gateway"),
        (["10.0.0.1/8"], [], "", "gateway"),  # host bits: it would be a larger block than was meant
        ([], ["app"], "", "gateway-label"),
        ([], ["app=a b"], "", "gateway-label"),
        (["10.0.0.1"], [], "security", "gateway-namespace"),
        ([], ["app=a"], "Se", "gateway-namespace"),
    ],
)
def test_gateways_that_are_not_named_well(networks: list[str], labels: list[str], namespace: str, field: str) -> None:
    with pytest.raises(Fault) as fault:
        Gateways.parse(networks, labels, namespace)
    assert (fault.value.reason, fault.value.field) == (Reason.SETTING_INVALID, field)


def test_a_label_that_is_none() -> None:
    with pytest.raises(Fault):
        export(rows(SEGMENTS), GATEWAYS, Format.CILIUM, "seg ment")


def test_the_command() -> None:
    words = ["export", str(STARTER), "--format", "kubernetes", "--gateway", "10.0.0.5"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert [each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout)] == [
        "sallyport-default-deny",
        "sallyport-segment-edge",
    ]
    assert CliRunner().invoke(app, words[:4]).exit_code == 1


PLACED = """
segments:
  - {name: web, networks: [10.20.0.0/16, "fd00:20::/48"]}
  - {name: database, networks: [10.21.0.0/24],
     select: {labels: {role: [db, replica], example.test/zone: [a]}, tiers: [1], regions: [eu], sites: [s1, s2]}}
"""


def placed(form: Format, networks: list[str], segments: str = PLACED) -> list[dict[str, Any]]:
    made = workspace(grants=MINIMAL["grants.yaml"].decode(), segments=segments).data["workspace"]
    return list(yaml.safe_load_all(export(made, Gateways.parse(networks, [], "", [8443]), form)))


@pytest.mark.parametrize("form", Format)
def test_whom_a_selector_selects_is_treated_as_its_segment(form: Format) -> None:
    _, database, selected, web = placed(form, ["192.0.2.1"])
    assert [each["metadata"]["name"] for each in (database, selected, web)] == [
        "sallyport-segment-database",
        "sallyport-selected-database",
        "sallyport-segment-web",
    ]
    key = "podSelector" if form is Format.KUBERNETES else "endpointSelector"
    assert selected["spec"][key] == {
        "matchExpressions": [
            {"key": "example.test/zone", "operator": "In", "values": ["a"]},
            {"key": "role", "operator": "In", "values": ["db", "replica"]},
            {"key": "sallyport-region", "operator": "In", "values": ["eu"]},
            {"key": "sallyport-site", "operator": "In", "values": ["s1", "s2"]},
            {"key": "sallyport-tier", "operator": "In", "values": ["1"]},
        ]
    }
    assert {**selected["spec"], key: {}} == {**database["spec"], key: {}}


@pytest.mark.parametrize("select", ["labels: {role: ['a b']}", "labels: {role: [é]}", "labels: {a/b/c: [x]}"])
def test_a_label_that_no_pod_could_bear_is_told(select: str) -> None:
    with pytest.raises(Fault) as caught:
        placed(Format.KUBERNETES, ["192.0.2.1"], f"segments: [{{name: web, select: {{{select}}}}}]")
    assert (caught.value.reason, caught.value.field) == (Reason.POLICY_DATA_INVALID, "segments.web.select")


def test_what_is_opened_towards_gateways_leaves_nodes_out() -> None:
    networks = ["10.0.0.0/8", "10.20.0.7", "10.21.0.0/24", "192.0.2.0/24"]
    for each in placed(Format.KUBERNETES, networks)[1:]:
        assert [peer["ipBlock"] for peer in each["spec"]["egress"][0]["to"]] == [
            {"cidr": "10.0.0.0/8", "except": ["10.20.0.0/16", "10.21.0.0/24"]},
            {"cidr": "10.20.0.7/32"},
            {"cidr": "10.21.0.0/24"},
            {"cidr": "192.0.2.0/24"},
        ]
    for each in placed(Format.CILIUM, networks)[1:]:
        assert each["spec"]["egress"][0]["toCIDRSet"][0] == {
            "cidr": "10.0.0.0/8",
            "except": ["10.20.0.0/16", "10.21.0.0/24"],
        }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=3),
    st.integers(0, 65_535),
)
def test_cilium_denies_all_of_the_nodes_networks_but_the_gateways_in_them(
    gateways: list[tuple[int, int]], host: int
) -> None:
    base = int(ipaddress.ip_address("10.20.3.0"))
    named = [ipaddress.ip_network((base + low, length), strict=False) for low, length in gateways]
    address = ipaddress.ip_address(int(ipaddress.ip_address("10.20.0.0")) + host)
    for each in placed(Format.CILIUM, ["192.0.2.1", *map(str, named)]):
        (to,), (comes,) = each["spec"]["egressDeny"], each["spec"]["ingressDeny"]
        assert to["toCIDR"] == comes["fromCIDR"]
        denied = any(address in ipaddress.ip_network(network) for network in to["toCIDR"])
        assert denied is not any(address in network for network in named)
        assert "fd00:20::/48" in to["toCIDR"]

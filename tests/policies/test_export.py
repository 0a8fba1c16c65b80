"""Segments as network policy: nothing in, nothing out but to gateways and DNS, byte for byte the same."""

from __future__ import annotations

import itertools
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
from tests.support.policy import STARTER

GOLDEN = Path(__file__).with_name("golden")
GATEWAYS = Gateways.parse(["10.0.0.5", "2001:db8::/64"], ["app=sallyport"], "security", [8443])
SEGMENTS = ["lab", "edge", "a_b"]


def documents(form: Format, segments: list[str] = SEGMENTS, gateways: Gateways = GATEWAYS) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(export(segments, gateways, form)))


@pytest.mark.parametrize("form", Format)
def test_it_is_what_it_was(form: Format) -> None:
    assert export(SEGMENTS, GATEWAYS, form) == (GOLDEN / f"segments-{form.value}.yaml").read_text()


@pytest.mark.parametrize("form", Format)
def test_in_whatever_order_the_segments_come(form: Format) -> None:
    assert len({export(order, GATEWAYS, form) for order in itertools.permutations(SEGMENTS)}) == 1


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
        export(SEGMENTS, GATEWAYS, Format.CILIUM, "seg ment")


def test_the_command() -> None:
    words = ["export", str(STARTER), "--format", "kubernetes", "--gateway", "10.0.0.5"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert [each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout)] == [
        "sallyport-default-deny",
        "sallyport-segment-edge",
    ]
    assert CliRunner().invoke(app, words[:4]).exit_code == 1

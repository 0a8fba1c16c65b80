"""The segments as network policy for Kubernetes, where nodes are pods.

Laws held here:
- nothing comes in, and nothing goes out but to the gateways and to DNS: nodes reach each other over brokered routes
  alone, so that what a segment `reaches` opens nothing here;
- a pod that bears the segment label with a name that is no segment may send nothing at all;
- the same segments and options give the same bytes.

Formats: NetworkPolicy of networking.k8s.io/v1 and CiliumNetworkPolicy of cilium.io/v2. Both add up: what one of them
allows is allowed, whatever the others say, and both are for the namespace that they are applied in.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml as pyyaml

from foundation.faults import Fault
from foundation.reasons import Reason

SEGMENT_LABEL = "sallyport-segment"
PORTS = (8443, 8444, 8445)  # the gateway, enrolment, the API at which nodes renew
_MANAGED = {"app.kubernetes.io/managed-by": "sallyport"}
_NAMESPACE = "kubernetes.io/metadata.name"
_CILIUM_NAMESPACE = "k8s:io.kubernetes.pod.namespace"
_DNS_LABELS = {"k8s-app": "kube-dns"}
_DNS_NAMESPACE = "kube-system"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_Document = dict[str, Any]


class Format(StrEnum):
    """Whose network policy."""

    KUBERNETES = "kubernetes"
    CILIUM = "cilium"


@dataclass(frozen=True, slots=True)
class Gateways:
    """Where the gateways and the authority are: at addresses, and pods with labels in a namespace (the nodes' own when
    it is empty)."""

    networks: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    namespace: str = ""
    ports: tuple[int, ...] = PORTS

    @classmethod
    def parse(
        cls, networks: Iterable[str], labels: Iterable[str], namespace: str, ports: Iterable[int] = PORTS
    ) -> Gateways:
        """From addresses or CIDR blocks, and `key=value` each. Raises `Fault(SETTING_INVALID)`."""
        found = dict(_label(text) for text in labels)
        gateways = cls(tuple(_network(text) for text in networks), found or None, namespace, tuple(sorted(set(ports))))
        if not gateways.networks and gateways.labels is None:
            raise Fault(Reason.SETTING_INVALID, "name the gateways by address or by label", field="gateway")
        if namespace and (not _SUBDOMAIN.fullmatch(namespace) or gateways.labels is None):
            raise Fault(Reason.SETTING_INVALID, "a namespace goes with labels", field="gateway-namespace")
        return gateways


def export(segments: Iterable[str], gateways: Gateways, form: Format, label: str = SEGMENT_LABEL) -> str:
    """YAML documents: one that denies everything to whatever bears `label`, then one for each segment. Raises
    `Fault(SETTING_INVALID)`."""
    if not _LABEL_KEY.fullmatch(label):
        raise Fault(Reason.SETTING_INVALID, "not a key of a Kubernetes label", field="segment-label")
    make: Callable[..., _Document] = {Format.KUBERNETES: _kubernetes, Format.CILIUM: _cilium}[form]
    bears = {"matchExpressions": [{"key": label, "operator": "Exists"}]}
    documents = [make("sallyport-default-deny", bears, None)]
    for segment in sorted(segments):
        documents.append(make(_name(segment), {"matchLabels": {label: segment}}, gateways))
    head = f"# By `sallyport policy export --format {form.value}`. Give each pod its segment: {label}=<segment>.\n"
    # Aliases would be legal and unreadable.
    dumper = type("_Dumper", (pyyaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})
    return head + pyyaml.dump_all(documents, Dumper=dumper, sort_keys=False, explicit_start=True)


def _kubernetes(name: str, selector: _Document, gateways: Gateways | None) -> _Document:
    spec: _Document = {"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": []}
    if gateways is not None:
        peers: list[_Document] = [{"ipBlock": {"cidr": network}} for network in gateways.networks]
        if gateways.labels is not None:
            peers.append(_pods(gateways.labels, gateways.namespace))
        ports = [{"port": port, "protocol": "TCP"} for port in gateways.ports]
        dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
        spec["egress"] = [{"to": peers, "ports": ports}, {"to": [_pods(_DNS_LABELS, _DNS_NAMESPACE)], "ports": dns}]
    return _policy("networking.k8s.io/v1", "NetworkPolicy", name, spec)


def _pods(labels: Mapping[str, str], namespace: str) -> _Document:
    """Pods with these labels in that namespace; of the policy's own namespace when it is empty."""
    where = {"namespaceSelector": {"matchLabels": {_NAMESPACE: namespace}}} if namespace else {}
    return {**where, "podSelector": {"matchLabels": dict(labels)}}


def _cilium(name: str, selector: _Document, gateways: Gateways | None) -> _Document:
    """An empty rule allows nothing; that there is one begins default deny for its direction."""
    spec: _Document = {"endpointSelector": selector, "ingress": [{}], "egress": [{}]}
    if gateways is not None:
        to_ports = _cilium_ports(gateways.ports, "TCP")
        egress: list[_Document] = []
        if gateways.networks:
            egress.append({"toCIDR": list(gateways.networks), "toPorts": to_ports})
        if gateways.labels is not None:
            egress.append({"toEndpoints": [_endpoints(gateways.labels, gateways.namespace)], "toPorts": to_ports})
        dns = [_endpoints(_DNS_LABELS, _DNS_NAMESPACE)]
        spec["egress"] = [*egress, {"toEndpoints": dns, "toPorts": _cilium_ports((53,), "UDP", "TCP")}]
    return _policy("cilium.io/v2", "CiliumNetworkPolicy", name, spec)


def _endpoints(labels: Mapping[str, str], namespace: str) -> _Document:
    where = {_CILIUM_NAMESPACE: namespace} if namespace else {}
    return {"matchLabels": {**where, **{f"k8s:{key}": value for key, value in labels.items()}}}


def _cilium_ports(ports: Iterable[int], *protocols: str) -> list[_Document]:
    return [{"ports": [{"port": str(port), "protocol": each} for port in ports for each in protocols]}]


def _policy(version: str, kind: str, name: str, spec: _Document) -> _Document:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(_MANAGED)}, "spec": spec}


def _name(segment: str) -> str:
    """A name that Kubernetes takes (RFC 1123 §2.1), of this segment alone: not every segment's name is one."""
    if _SUBDOMAIN.fullmatch(segment):
        return f"sallyport-segment-{segment}"
    return f"sallyport-segment-x{hashlib.sha256(segment.encode()).hexdigest()[:16]}"


def _network(text: str) -> str:
    try:
        if "%" in text:  # whatever follows would be taken as the zone of an IPv6 address
            raise ValueError
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise Fault(Reason.SETTING_INVALID, f"{text[:64]!r} is no address and no CIDR block", field="gateway") from None


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
        raise Fault(Reason.SETTING_INVALID, f"{text[:64]!r} is no label: expected key=value", field="gateway-label")
    return key, value

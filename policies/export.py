"""The segments as network policy for Kubernetes, where nodes are pods.

Laws held here:
- nothing comes in, and nothing goes out but to the gateways and to DNS: nodes reach each other over brokered routes
  alone, so that what a segment `reaches` opens nothing here;
- a pod that bears the segment label with a name that is no segment may send nothing at all;
- a pod that a segment's selector selects is treated as one that bears the segment's label;
- the networks in which nodes live are left out of whatever is opened towards gateways, and with Cilium denied, whatever
  other policies allow; a gateway inside them that is named more narrowly stays reached;
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
_PLACES = {"tiers": "sallyport-tier", "regions": "sallyport-region", "sites": "sallyport-site"}
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_Document = dict[str, Any]
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Where nodes live. `denied`: what of that is no gateway's, as far as gateways are named within it."""

    networks: tuple[_Network, ...]
    denied: tuple[str, ...]

    @classmethod
    def of(cls, by_segment: Mapping[str, Iterable[str]], gateways: Gateways) -> _Nodes:
        networks = tuple(ipaddress.ip_network(text) for texts in by_segment.values() for text in texts)
        inside = [ipaddress.ip_network(text) for text in gateways.networks]
        left = [each for network in networks for each in _without(network, inside)]
        return cls(networks, tuple(str(each) for version in (4, 6) for each in _collapsed(left, version)))

    def within(self, block: str) -> list[str]:
        """Those that are part of `block`, and not all of it."""
        outer = ipaddress.ip_network(block)
        inner = [each for each in self.networks if each != outer and _is_within(each, outer)]
        return [str(each) for each in _collapsed(inner, outer.version)]


def export(rows: Mapping[str, Any], gateways: Gateways, form: Format, label: str = SEGMENT_LABEL) -> str:
    """YAML documents of the workspace's `rows`: one that denies everything to whatever bears `label`, then one for each
    segment, and one for whom its selector selects. Raises `Fault(SETTING_INVALID | POLICY_DATA_INVALID)`."""
    if not _LABEL_KEY.fullmatch(label):
        raise Fault(Reason.SETTING_INVALID, "not a key of a Kubernetes label", field="segment-label")
    make: Callable[..., _Document] = {Format.KUBERNETES: _kubernetes, Format.CILIUM: _cilium}[form]
    nodes = _Nodes.of(rows.get("networks", {}), gateways)
    selectors = rows.get("selectors", {}).get("of", {})
    bears = {"matchExpressions": [{"key": label, "operator": "Exists"}]}
    documents = [make("sallyport-default-deny", bears, None, nodes)]
    for segment in sorted(rows["segments"]):
        documents.append(make(_name("segment", segment), {"matchLabels": {label: segment}}, gateways, nodes))
        if segment in selectors:
            documents.append(make(_name("selected", segment), _selected(segment, selectors[segment]), gateways, nodes))
    head = f"# By `sallyport policy export --format {form.value}`. Give each pod its segment: {label}=<segment>.\n"
    # Aliases would be legal and unreadable.
    dumper = type("_Dumper", (pyyaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})
    return head + pyyaml.dump_all(documents, Dumper=dumper, sort_keys=False, explicit_start=True)


def _selected(segment: str, selector: Mapping[str, Any]) -> _Document:
    """Pods that bear what the segment's selector asks for: its labels, and its places as labels of ours."""
    asked = dict(selector.get("labels", {})) | {_PLACES[name]: selector[name] for name in _PLACES if name in selector}
    for key, values in asked.items():
        for value in map(str, values):
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                detail = f"{key[:64]}={value[:64]} is no label that a pod could bear"
                raise Fault(Reason.POLICY_DATA_INVALID, detail, field=f"segments.{segment}.select")
    expressions = [{"key": key, "operator": "In", "values": [*map(str, asked[key])]} for key in sorted(asked)]
    return {"matchExpressions": expressions}


def _kubernetes(name: str, selector: _Document, gateways: Gateways | None, nodes: _Nodes) -> _Document:
    spec: _Document = {"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": []}
    if gateways is not None:
        peers: list[_Document] = [{"ipBlock": _block(network, nodes)} for network in gateways.networks]
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


def _cilium(name: str, selector: _Document, gateways: Gateways | None, nodes: _Nodes) -> _Document:
    """An empty rule allows nothing; that there is one begins default deny for its direction. What is denied stays
    denied, whatever other policies allow."""
    spec: _Document = {"endpointSelector": selector, "ingress": [{}], "egress": [{}]}
    if gateways is not None:
        to_ports = _cilium_ports(gateways.ports, "TCP")
        egress: list[_Document] = []
        if gateways.networks:
            egress.append({**_cidrs(gateways.networks, nodes), "toPorts": to_ports})
        if gateways.labels is not None:
            egress.append({"toEndpoints": [_endpoints(gateways.labels, gateways.namespace)], "toPorts": to_ports})
        dns = [_endpoints(_DNS_LABELS, _DNS_NAMESPACE)]
        spec["egress"] = [*egress, {"toEndpoints": dns, "toPorts": _cilium_ports((53,), "UDP", "TCP")}]
    if nodes.denied:
        spec["ingressDeny"] = [{"fromCIDR": list(nodes.denied)}]
        spec["egressDeny"] = [{"toCIDR": list(nodes.denied)}]
    return _policy("cilium.io/v2", "CiliumNetworkPolicy", name, spec)


def _cidrs(blocks: Iterable[str], nodes: _Nodes) -> _Document:
    """Blocks towards gateways, without the networks of nodes within them."""
    found = [_block(block, nodes) for block in blocks]
    if any("except" in block for block in found):
        return {"toCIDRSet": found}
    return {"toCIDR": [block["cidr"] for block in found]}


def _block(block: str, nodes: _Nodes) -> _Document:
    within = nodes.within(block)
    return {"cidr": block, "except": within} if within else {"cidr": block}


def _without(network: _Network, gateways: Iterable[_Network]) -> list[_Network]:
    """What is left of `network` without the gateways that are named within it."""
    left: list[_Network] = [network]
    for gateway in gateways:
        if _is_within(gateway, network):
            left = [part for each in left for part in _parts(each, gateway)]
    return left


def _parts(network: _Network, out: _Network) -> list[_Network]:
    if _is_within(network, out):
        return []
    if not _is_within(out, network):
        return [network]
    return [*network.address_exclude(out)]  # type: ignore[arg-type]  # of one version: it is within


def _is_within(inner: _Network, outer: _Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # of one version


def _collapsed(networks: Iterable[_Network], version: int) -> list[_Network]:
    """Those of one version, as few as hold the same addresses, in order."""
    return [*ipaddress.collapse_addresses(each for each in networks if each.version == version)]  # type: ignore[type-var]


def _endpoints(labels: Mapping[str, str], namespace: str) -> _Document:
    where = {_CILIUM_NAMESPACE: namespace} if namespace else {}
    return {"matchLabels": {**where, **{f"k8s:{key}": value for key, value in labels.items()}}}


def _cilium_ports(ports: Iterable[int], *protocols: str) -> list[_Document]:
    return [{"ports": [{"port": str(port), "protocol": each} for port in ports for each in protocols]}]


def _policy(version: str, kind: str, name: str, spec: _Document) -> _Document:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(_MANAGED)}, "spec": spec}


def _name(kind: str, segment: str) -> str:
    """A name that Kubernetes takes (RFC 1123 §2.1), of this segment alone: not every segment's name is one."""
    if _SUBDOMAIN.fullmatch(segment):
        return f"sallyport-{kind}-{segment}"
    return f"sallyport-{kind}-x{hashlib.sha256(segment.encode()).hexdigest()[:16]}"


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

"""segments.yaml: for each segment which others it reaches by streams, which nodes its selector selects, and in which
networks its nodes live."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foundation.fields import Fields
from foundation.identifiers import check_name
from policies.lifecycle.findings import Findings
from policies.lifecycle.routes_yaml import read_tiers
from policies.lifecycle.strict_yaml import Document

MAX_NETWORKS = 4096  # of the whole workspace: every node's firewall holds them all
MAX_LABELS = 32  # that selectors name: each has rules of its own in the policy
MAX_VALUES = 64
MAX_LABEL = 256  # characters of a label's name or value, as in the inventory
WIDEST = {4: 8, 6: 16}
"""The shortest prefix of a segment's network, by IP version: what is wider holds more than nodes."""
LABEL_TEMPLATE = "selecting_label.rego"
LABEL_RULES = "selecting_label_made.rego"
_STAND_IN = b'"the-label"'
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?", re.ASCII)
_TIERS = 4

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True)
class Segments:
    """Segment to the segments it reaches, to its selector, to its networks; those that have none are in no mapping."""

    reaches: dict[str, list[str]] = field(default_factory=dict)
    selectors: dict[str, dict[str, Any]] = field(default_factory=dict)
    networks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def conditions(self) -> frozenset[str]:
        """What selectors ask about: `labels`, `tiers`, `regions`, `sites`."""
        return frozenset(name for selector in self.selectors.values() for name in selector)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that selectors name."""
        return tuple(sorted({key for selector in self.selectors.values() for key in selector.get("labels", {})}))


def read_segments(document: Document, findings: Findings) -> Segments:
    """The segments of the file. A segment does not reach itself unless it says so."""
    found = Segments()

    def read(item: Fields) -> None:
        name = findings.name(item, "name", taken=found.reaches)
        item.text("about", "")
        found.reaches[name] = sorted(set(item.texts("reaches", ())))
        if item.has("select"):
            found.selectors[name] = _selector(item)
        if item.has("networks"):
            found.networks[name] = _networks(item)

    with findings.collecting(document):
        fields = document.fields()
        findings.each(document, fields, "segments", read)
        fields.finish()
    _check(document, findings, found)
    return found


def selector_rows(segments: Segments) -> dict[str, Any]:
    """The selectors as Rego looks them up: each under one of its conditions, the most telling one, with what is left to
    ask; whole in `of`."""
    rows: dict[str, Any] = {"by_label": {}, "by_site": {}, "by_region": {}, "by_tier": [[] for _ in range(_TIERS)]}
    for name, selector in sorted(segments.selectors.items()):
        row = {"segment": name, "reaches": segments.reaches[name], **selector}
        for place in _places(rows, row):
            place.append(row)
    return rows | {"of": segments.selectors}


def label_rules(template: bytes, labels: Iterable[str]) -> bytes:
    """The rules of `template` for each of `labels`."""
    _, package, body = template.partition(b"package sallyport.segments\n")
    rules = b"".join(body.replace(_STAND_IN, json.dumps(label).encode()) for label in labels)
    return b"# Made of " + LABEL_TEMPLATE.encode() + b" for the labels that selectors name.\n" + package + rules


def parse_network(text: str) -> Network:
    """The network that `text` is in CIDR notation (RFC 4632 §3.1, RFC 4291 §2.3), if nodes can live there. Raises
    `ValueError` with what is wrong."""
    if "%" in text:  # whatever follows would be taken as the zone of an IPv6 address
        raise ValueError("is no network")
    network = ipaddress.ip_network(text)
    if network.prefixlen < WIDEST[network.version]:
        raise ValueError(f"is wider than /{WIDEST[network.version]}")
    if network.is_loopback or network.is_multicast or network.is_link_local or network.is_unspecified:
        raise ValueError("is no network in which nodes live")
    return network


def _check(document: Document, findings: Findings, found: Segments) -> None:
    for name, reached in found.reaches.items():
        for other in set(reached) - set(found.reaches):
            findings.add(document, f"segments.{name}", f"segment {name} reaches {other!r}, which is no segment")
    if len(found.labels) > MAX_LABELS:
        findings.add(document, "segments", f"selectors name {len(found.labels)} labels, at most {MAX_LABELS} may be")
    if sum(map(len, found.networks.values())) > MAX_NETWORKS:
        findings.add(document, "segments", f"more than {MAX_NETWORKS} networks")


def _selector(item: Fields) -> dict[str, Any]:
    fields, selector = item.section("select"), dict[str, Any]()
    if not fields.names:
        raise item.fault("select", "names nothing, so that it would select every node")
    if fields.has("labels"):
        selector["labels"] = _labels(fields)
    if fields.has("tiers"):
        selector["tiers"] = read_tiers(fields)
    for name in ("regions", "sites"):
        if fields.has(name):
            selector[name] = [check_name(value, field=f"{fields.path}.{name}") for value in _values(fields, name)]
    fields.finish()
    return selector


def _labels(selector: Fields) -> dict[str, list[str]]:
    labels = selector.section("labels")
    if not labels.names:
        raise selector.fault("labels", "an empty mapping; leave the field out to name no limit")
    for name in labels.names:
        if not _LABEL.fullmatch(name):
            raise selector.fault("labels", f"{name[:64]!r} is no name of a label: letters, digits, '.', '_', '-', '/'")
    return {name: _values(labels, name) for name in labels.names}


def _values(fields: Fields, name: str) -> list[str]:
    values = fields.texts(name, most=MAX_VALUES)
    if not values:
        raise fields.fault(name, "an empty list allows nothing; leave the field out to name no limit")
    if any(len(value) > MAX_LABEL for value in values):
        raise fields.fault(name, f"expected values of at most {MAX_LABEL} characters")
    return sorted(set(values))


def _networks(item: Fields) -> list[str]:
    found = []
    for text in item.texts("networks", most=MAX_NETWORKS):
        try:
            found.append(parse_network(text))
        except ValueError as error:
            raise item.fault("networks", f"{text[:64]!r}: {error}"[:256]) from None
    if not found:
        raise item.fault("networks", "an empty list; leave the field out where none are known")
    return [str(network) for network in sorted(set(found), key=lambda each: (each.version, each))]


def _places(rows: Mapping[str, Any], row: dict[str, Any]) -> list[list[Any]]:
    """The lists that `row` belongs to, by the condition that is then asked no more."""
    if "labels" in row:
        key, values = min(row["labels"].items())
        row["labels"] = {name: other for name, other in row["labels"].items() if name != key}
        if not row["labels"]:
            del row["labels"]
        by_value = rows["by_label"].setdefault(key, {})
        return [by_value.setdefault(value, []) for value in values]
    for index, condition in (("by_site", "sites"), ("by_region", "regions")):
        if condition in row:
            return [rows[index].setdefault(value, []) for value in row.pop(condition)]
    return [rows["by_tier"][tier] for tier in row.pop("tiers")]

"""Which nodes a stream may lead to, one for each kind that the policy can tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.access.asking import Policy, Probe, Subject, Target, query_of
from policies.frozen import kept_part
from policies.model import STREAM
from policies.projection import Path

_MAX_TARGETS = 64
_PLACES = {"region": "regions", "site": "sites"}


class _Group(NamedTuple):
    """Nodes that are one to policy; `told` is what it can tell of them, as of a target."""

    told: Mapping[str, Any]
    members: list[Subject]


def told_apart(policy: Policy, nodes: Iterable[Subject]) -> tuple[Target, ...]:
    """One of `nodes` for each kind of target that policy can tell apart. Raises `Fault(POLICY_BOMB)` for too many."""
    reads = tuple(path for path in policy.reads if path[:1] in {("target",), ()})
    groups: dict[str, _Group] = {}
    for node in nodes:
        asked = query_of(node, Probe("", "", "", STREAM, target=node), 0).to_input()["target"]
        told = _without_what_none_names(policy, asked) if policy.is_default else asked
        group = groups.setdefault(repr(kept_part({"target": told}, reads)), _Group(told, []))
        group.members.append(node)
    if len(groups) > _MAX_TARGETS:
        raise Fault(Reason.POLICY_BOMB, f"policy tells {len(groups)} targets apart, at most {_MAX_TARGETS} are asked")
    read = tuple(path[1:] for path in reads)
    return tuple(Target(_named(group, read), group.members[0]) for group in groups.values())


def _without_what_none_names(policy: Policy, target: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a target without what no selector names: the default policy compares a target's region, site and
    labels with nothing else, so that all other values are one to it."""
    selectors: Iterable[Mapping[str, Any]] = tuple(policy.rows.get("selectors", {}).get("of", {}).values())
    named = {place: {value for each in selectors for value in each.get(field, ())} for place, field in _PLACES.items()}
    labels = {
        key: value
        for key, value in target["labels"].items()
        if any(value in each.get("labels", {}).get(key, ()) for each in selectors)
    }
    return {
        **target,
        **{place: target[place] if target[place] in named[place] else "" for place in named},
        "labels": labels,
    }


def _named(group: _Group, read: Sequence[Path]) -> str:
    """With what selectors look at, where the policy has any."""
    told, first = group.told, group.members[0]
    found = [f"segment {told['segment'] or '(none)'}", first.posture.attestation.value]
    found += [f"{name} {told[name]}" for name in ("tier", "region", "site") if (name,) in read and told[name]]
    found += [f"{key}={value}" for key, value in sorted(told["labels"].items()) if ("labels", key) in read]
    text, count = ", ".join(found), len(group.members)
    return f"{first.record.id.name} ({text})" if count == 1 else f"{count} nodes ({text})"

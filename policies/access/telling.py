"""The answers about access as documents: what the API answers, `--json` prints and a terminal shows.

Times are seconds since the Unix epoch; `until` is null where there is no end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind
from foundation.reasons import Reason
from policies.access import classes as by_class
from policies.access.asking import (
    UPGRADE,
    Policy,
    Subject,
    Target,
    Tick,
    also_read,
    narrowed,
    probes_of,
    what_can_reach,
    who_can_reach,
    why,
)
from policies.access.targets import told_apart
from policies.explain import Explanation
from policies.lifecycle.grants_yaml import METHODS
from policies.lifecycle.paths import parse_paths
from policies.segments import segments_of

MAX_CLASS_QUESTIONS = 50_000


class Asked(NamedTuple):
    """What is asked on a route, empty where it is whatever is granted: of `http`, the method and the path; of a stream,
    the node that it leads `to`."""

    method: str = ""
    path: str = ""
    to: str = ""


def who_document(policy: Policy, route: str, subjects: Sequence[Subject], now: int, most: int, tick: Tick) -> Any:
    """Who can reach `route`: classes of identity by what the policy names, and those of `subjects` in `most` questions.
    Raises `Fault(NOT_FOUND)` and what the engine fails with."""
    imagined = probes_of(policy, route, _targets(policy, (), (route,)))
    found = by_class.classes(policy, route, imagined, now, MAX_CLASS_QUESTIONS, lambda _: tick(0))
    reach = who_can_reach(
        policy, subjects, probes_of(policy, route, _targets(policy, subjects, (route,))), now, most, tick
    )
    return {
        "route": route,
        "revision": policy.revision,
        "at": now,
        "classes": [each.to_json() for each in found] if found is not None else None,
        "identities": [{**subject_document(subject), **one.to_json()} for subject, one in reach.allowed],
        "asked": reach.asked,
        "unasked": reach.unasked,
        "also_reads": also_read(policy, by_class.PLACES),
    }


def what_document(policy: Policy, subject: Subject, others: Sequence[Subject], now: int, most: int, tick: Tick) -> Any:
    """What `subject` can reach, in `most` questions; `others` are the nodes that streams may lead to."""
    found, unasked = what_can_reach(policy, subject, _targets(policy, others, policy.routes), now, most, tick)
    return {
        **subject_document(subject),
        "segments": sorted(segments_of(policy.data, subject.record)),
        "revision": policy.revision,
        "at": now,
        "routes": [{"route": route, **one.to_json()} for route, one in found.items()],
        "unasked": unasked,
    }


def why_explanation(
    policy: Policy, subject: Subject, others: Sequence[Subject], route: str, asked: Asked, now: int
) -> Explanation:
    """Why `subject` may or may not use `route`: as `asked`, or by whatever is granted there. Raises
    `Fault(MESSAGE_MALFORMED | NOT_FOUND)` and what the engine fails with."""
    if asked.to:
        others = _only(policy, others, route, asked.to)
    probes = probes_of(policy, route, _targets(policy, others, (route,)))
    return why(policy, subject, narrowed(probes, route, *_request(asked.method, asked.path)), now)


def _only(policy: Policy, others: Sequence[Subject], route: str, name: str) -> tuple[Subject, ...]:
    """The node that a stream is to lead to."""
    if not policy.is_stream(route):
        raise Fault(Reason.MESSAGE_MALFORMED, "only `stream` routes lead to a node", field="to")
    for each in others:
        if each.record.id.kind is Kind.NODE and name in (each.record.id.name, str(each.record.id)):
            return (each,)
    raise Fault(Reason.NOT_FOUND, f"no node {name[:64]!r} among the identities", field="to")


def _targets(policy: Policy, subjects: Sequence[Subject], routes: Iterable[str]) -> tuple[Target, ...]:
    """What a stream among `routes` may lead to: the nodes that are known; without any, one of each segment and
    attestation class."""
    if not any(policy.is_stream(route) for route in routes):
        return ()
    nodes = tuple(each for each in subjects if each.record.id.kind is Kind.NODE)
    return told_apart(policy, nodes or by_class.nodes(policy))


def subject_document(subject: Subject) -> dict[str, Any]:
    """Who it is, in the facts that most rules read; `refusal` is why it is shut out now, whatever policy says."""
    record = subject.record
    return {
        "identity": str(record.id),
        "name": record.id.name,
        "kind": record.id.kind.value,
        "roles": sorted(record.roles),
        "tier": record.tier,
        "segment": record.segment,
        "site": record.site,
        "attestation": subject.posture.attestation.value,
        "refusal": subject.refusal.code if subject.refusal is not None else "",
    }


def _request(method: str, path: str) -> tuple[str, tuple[str, ...] | None]:
    asked = Fields({"method": method, "path": [path]}, "", Reason.MESSAGE_MALFORMED)
    if method:
        asked.one_of("method", (*METHODS, UPGRADE))
    if not path:
        return method, None
    found = parse_paths(asked, "path")["paths"]
    if not found:
        raise asked.fault("path", "a request has no wildcards")
    return method, tuple(found[0])

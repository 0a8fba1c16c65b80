"""What is told about access is what the policy answers, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from gateway.proxy import normalise
from policies.access.asking import (
    UPGRADE,
    Policy,
    Probe,
    Subject,
    access,
    decide,
    narrowed,
    probes_of,
    request_of,
    what_can_reach,
    who_can_reach,
    why,
)
from policies.access.classes import ANY, DIMENSIONS, OTHER, AccessClass, classes, nodes
from policies.access.loaded import loaded
from policies.access.targets import told_apart
from policies.access.telling import who_document
from policies.compile import compile_policy
from policies.lifecycle.workspace import default_policy, load_workspace
from policies.model import Answer, Permit, Query
from policies.settings import CompileSettings, PolicySettings
from tests.support.policy import MINIMAL

NOW = 1_800_000_000
ROUTES = b"""routes:
  - {name: files, prefix: /files, upstreams: ['http://127.0.0.1:80'], kinds: [node, operator], segments: [edge, lab],
     upgrades: [websocket]}
  - {name: shell, type: stream, service: ssh, kinds: [node], attestation: hardware}
  - {name: empty, prefix: /empty, upstreams: ['http://127.0.0.1:80'], kinds: [node]}
"""
GRANTS = b"""roles: {reader: R, writer: W}
grants:
  - {id: read, role: reader, route: files, methods: [GET], paths: [/files/**], expires: 2030-01-01}
  - {id: write, role: writer, route: files, methods: [GET, PUT], paths: [/files/*, /files/log], sites: [s1],
     tiers: [1, 2], expires: 2031-01-01}
  - {id: watch, role: writer, route: files, methods: [UPGRADE], paths: [/files/watch], expires: 2030-01-01}
  - {id: over, role: writer, route: files, methods: [DELETE], paths: [/files/old], expires: 2020-01-01}
  - {id: shell, role: writer, route: shell, expires: 2030-01-01}
denies:
  - {id: no-keys, route: files, paths: [/files/keys/**], why: Keys.}
  - {id: not-n2, route: files, methods: [PUT], names: [n2], why: It broke.}
"""
SEGMENTS = b"segments:\n  - {name: edge, reaches: [lab]}\n  - {name: lab}\n"
OWN = b"""package sallyport.custom

deny contains "not in the attic" if input.identity.labels.room == "attic"
"""


@contextmanager
def policy_of(**files: bytes) -> Iterator[Policy]:
    given = {"routes.yaml": ROUTES, "grants.yaml": GRANTS, "segments.yaml": SEGMENTS, "rules/own.rego": OWN}
    found = load_workspace({**MINIMAL, **given, **files}, default_policy())
    with loaded(compile_policy(found.rego, found.data, CompileSettings()), 7, PolicySettings()) as policy:
        yield policy


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    with policy_of() as made:
        yield made


def subject(name: str = "n1", *roles: str, kind: Kind = Kind.NODE, **changes: Any) -> Subject:
    posture = Posture(changes.pop("attestation", AttestationClass.HARDWARE), changes.pop("verdict", Verdict.PASSED))
    refusal = changes.pop("refusal", None)
    facts = {"tier": 1, "segment": "edge", "site": "s1"} | changes
    return Subject(
        IdentityRecord(SpiffeId("fleet.test", kind, name), State.ACTIVE, 1, roles, **facts), posture, refusal
    )


def silent(count: int) -> bool:
    return count == 1


SUBJECTS = st.builds(
    lambda name, roles, kind, labels, **changes: subject(name, *roles, kind=kind, labels=labels, **changes),
    st.sampled_from(["n1", "n2", "n3"]),
    st.lists(st.sampled_from(["reader", "writer", "other"]), unique=True, max_size=3),
    st.sampled_from([Kind.NODE, Kind.OPERATOR, Kind.SERVICE]),
    st.sampled_from([{}, {"room": "attic"}]),
    tier=st.integers(0, 3),
    segment=st.sampled_from(["edge", "lab", ""]),
    site=st.sampled_from(["s1", "s2", ""]),
    attestation=st.sampled_from(AttestationClass),
    verdict=st.sampled_from(Verdict),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fleet=st.lists(SUBJECTS, max_size=6, unique_by=lambda each: each.record.id),
    route=st.sampled_from(["files", "shell"]),
)
def test_who_can_reach_is_what_each_decision_says(policy: Policy, fleet: list[Subject], route: str) -> None:
    probes = probes_of(policy, route, told_apart(policy, fleet))
    reach = who_can_reach(policy, fleet, probes, NOW, 10_000, silent)
    told = {
        (str(one.record.id), way.grant, method, path)
        for one, found in reach.allowed
        for way in found.ways
        for path in way.paths
        for method in way.methods or ("",)
    }
    asked = {
        (str(one.record.id), decision.grant, probe.method, probe.covers)
        for one in fleet
        for probe in probes
        if not probe.exception and isinstance(decision := decide(policy, one, probe, NOW), Permit)
    }
    assert told == asked
    assert (reach.asked, reach.unasked) == (len(fleet), 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=SUBJECTS)
def test_what_can_reach_agrees_with_who_can_reach(policy: Policy, one: Subject) -> None:
    found, unasked = what_can_reach(policy, one, told_apart(policy, [one]), NOW, 10_000, silent)
    for route in policy.routes:
        reach = who_can_reach(policy, [one], probes_of(policy, route, told_apart(policy, [one])), NOW, 10_000, silent)
        assert [each for _, each in reach.allowed] == ([found[route]] if route in found else [])
    assert unasked == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    role=st.sampled_from(["reader", "writer", ""]), kind=st.sampled_from(Kind), tier=st.integers(1, 3),
    segment=st.sampled_from(["edge", "lab", ""]), site=st.sampled_from(["s1", "s2"]),
    attestation=st.sampled_from(AttestationClass), route=st.sampled_from(["files", "shell"]),
)  # fmt: skip
def test_a_class_is_told_where_each_of_it_has_access_and_nowhere_else(
    policy: Policy, role: str, kind: Kind, tier: int, segment: str, site: str, attestation: AttestationClass, route: str
) -> None:
    is_node = kind is Kind.NODE
    facts: dict[str, Any] = {
        "tier": tier if is_node else 0,
        "segment": segment if is_node else "",
        "site": site,
        "attestation": attestation if is_node else AttestationClass.NONE,
    }
    probes = probes_of(policy, route, told_apart(policy, nodes(policy)))
    found = [each.access for each in told_of(policy, route, probes) if holds(each, role, kind, facts)]
    one = access(policy, subject("someone", *([role] if role else []), kind=kind, **facts), probes, NOW)
    assert found == ([one] if one is not None else [])


def told_of(policy: Policy, route: str, probes: Sequence[Probe]) -> tuple[AccessClass, ...]:
    if (id(policy), route) not in _TOLD:
        _TOLD[id(policy), route] = classes(policy, route, probes, NOW, 10**6, silent) or ()
    return _TOLD[id(policy), route]


_TOLD: dict[tuple[int, str], tuple[AccessClass, ...]] = {}


def holds(told: AccessClass, role: str, kind: Kind, facts: dict[str, Any]) -> bool:
    found = {"role": role, **facts, "site": facts["site"] if facts["site"] == "s1" else OTHER}
    return told.kind == kind and all(
        getattr(told, name) == (ANY,)
        or (str(found[name]) if found[name] not in ("", 0) else "none") in getattr(told, name)
        for name in DIMENSIONS
    )


def test_a_way_names_its_grant_its_end_and_what_a_deny_takes_out(policy: Policy) -> None:
    found = access(policy, subject("n1", "reader"), probes_of(policy, "files"), NOW)
    assert found is not None
    assert [(way.grant, way.until, way.methods, way.paths) for way in found.ways] == [
        ("read", 1_893_456_000.0, ("GET",), ("/files/*", "/files/**", "/files/log")),
    ]
    assert found.exceptions == ("GET /files/keys/**",)


def test_an_upgrade_and_an_ended_grant(policy: Policy) -> None:
    found = access(policy, subject("n1", "writer"), probes_of(policy, "files"), NOW)
    assert found is not None
    assert {(way.grant, way.methods) for way in found.ways} == {("write", ("GET", "PUT")), ("watch", (UPGRADE,))}


def test_an_own_rule_is_heeded(policy: Policy) -> None:
    assert access(policy, subject("n1", "reader", labels={"room": "attic"}), probes_of(policy, "files"), NOW) is None


def test_a_stream_tells_the_nodes_that_it_leads_to(policy: Policy) -> None:
    lab = [subject(f"l{number}", segment="lab") for number in range(3)]
    weak = subject("weak", segment="lab", attestation=AttestationClass.VIRTUAL)
    caller = subject("n1", "writer")
    probes = probes_of(policy, "shell", told_apart(policy, [caller, *lab, weak]))
    assert len(probes) == 3  # by segment and attestation, not by name: policy cannot tell more apart
    found = access(policy, caller, probes, NOW)
    assert found is not None
    assert [(way.grant, way.methods, way.paths) for way in found.ways] == [
        ("shell", (), ("3 nodes (segment lab, hardware)",))
    ]


def test_who_finds_no_room_is_counted(policy: Policy) -> None:
    probes = probes_of(policy, "files")
    fleet = [subject(f"n{number}", "reader") for number in range(5)]
    reach = who_can_reach(policy, fleet, probes, NOW, 2 * len(probes), silent)
    assert ([each.record.id.name for each, _ in reach.allowed], reach.asked, reach.unasked) == (["n0", "n1"], 2, 3)
    found, unasked = what_can_reach(policy, fleet[0], [], NOW, 0, silent)
    assert (found, unasked) == ({}, ("files",))  # the others have nothing to ask
    assert classes(policy, "files", probes, NOW, 10, silent) is None


def test_who_is_asked_about_when_it_is_enough_is_told_too(policy: Policy) -> None:
    def enough(count: int) -> bool:
        return False

    probes = probes_of(policy, "files")
    fleet = [subject(f"n{number}", "reader") for number in range(3)]
    reach = who_can_reach(policy, fleet, probes, NOW, 10_000, enough)
    assert (len(reach.allowed), reach.asked, reach.unasked) == (1, 1, 2)
    assert what_can_reach(policy, fleet[0], [], NOW, 10_000, enough) == ({}, policy.routes)
    assert classes(policy, "files", probes, NOW, 10**6, enough) is None


def test_an_engine_that_fails_is_no_denial(policy: Policy) -> None:
    def fail(query: Query) -> Answer:
        return Answer(False, (Reason.ENGINE_TIMEOUT,))

    broken = Policy(fail, policy.explain, policy.data, policy.reads)
    with pytest.raises(Fault) as fault:
        access(broken, subject("n1", "reader"), probes_of(policy, "files"), NOW)
    assert fault.value.reason is Reason.ENGINE_TIMEOUT


def test_a_route_that_is_none(policy: Policy) -> None:
    with pytest.raises(Fault) as fault:
        probes_of(policy, "nowhere")
    assert fault.value.reason is Reason.NOT_FOUND


def test_our_own_api_is_asked_by_name(policy: Policy) -> None:
    probes = probes_of(policy, "api.tokens.create")
    found = classes(policy, "api.tokens.create", probes, NOW, 10**6, silent)
    assert found is not None
    assert {(each.kind, each.role, each.access.ways[0].until) for each in found} == {
        (kind, (role,), None) for kind in ("operator", "service") for role in ("operator", "security")
    }


def test_why_takes_what_is_allowed_else_that_against_which_least_stands(policy: Policy) -> None:
    probes = probes_of(policy, "files")
    found = why(policy, subject("n1", "writer"), probes, NOW)
    assert (found.allowed, found.grant, found.revision) == (True, "write", 7)
    found = why(policy, subject("n1", segment=""), probes, NOW)
    assert not found.allowed
    assert "the caller is in segment (none); the route takes edge, lab" in found.sentences


def test_why_of_one_request(policy: Policy) -> None:
    probes = narrowed(probes_of(policy, "files"), "files", "", ("files", "keys", "k"))
    found = why(policy, subject("n1", "reader"), probes, NOW)
    assert (found.reasons, found.what) == ((Reason.DENY_OVERRIDE,), "GET /files/keys/k")
    assert "deny no-keys: Keys." in found.sentences
    found = why(policy, subject("n1", "reader"), narrowed(probes_of(policy, "files"), "files", "PUT", None), NOW)
    assert found.reasons == (Reason.METHOD_NOT_GRANTED,)
    assert found.near_misses[0].grant == "read"


def test_why_of_an_ended_grant_says_when(policy: Policy) -> None:
    probes = narrowed(probes_of(policy, "files"), "files", "DELETE", ("files", "old"))
    found = why(policy, subject("n1", "writer"), probes, NOW)
    assert found.reasons == (Reason.GRANT_EXPIRED,)
    assert "grant over ended at 2020-01-01T00:00:00Z" in found.sentences


def test_why_of_who_is_shut_out_tells_what_policy_alone_says(policy: Policy) -> None:
    one = subject("n1", "reader", refusal=Reason.IDENTITY_QUARANTINED)
    found = why(policy, one, probes_of(policy, "files"), NOW)
    assert (found.allowed, found.reasons, found.grant) == (False, (Reason.IDENTITY_QUARANTINED,), "")
    assert "policy alone answers: granted" in found.sentences


def test_why_where_nobody_holds_a_grant_asks_for_a_path(policy: Policy) -> None:
    with pytest.raises(Fault, match="name a path"):
        why(policy, subject(), probes_of(policy, "empty"), NOW)
    probes = narrowed((), "empty", "", ("empty",))
    assert why(policy, subject(), probes, NOW).reasons == (Reason.NO_GRANT,)


@pytest.mark.parametrize("route", ["shell", "api.tokens.create"])
def test_what_has_no_path_is_not_asked_by_one(policy: Policy, route: str) -> None:
    with pytest.raises(Fault) as fault:
        narrowed(probes_of(policy, route, told_apart(policy, nodes(policy))), route, "GET", None)
    assert fault.value.reason is Reason.MESSAGE_MALFORMED


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_request_is_as_the_gateway_makes_it(method: str) -> None:
    assert request_of(method, ("a", "b")) == normalise.canonical(method.encode(), b"/a/b", b"", b"")
    assert request_of(UPGRADE, ("a",)) == normalise.canonical(b"GET", b"/a", b"", b"websocket")


def test_a_wildcard_is_asked_by_a_segment_that_stands_nowhere_else() -> None:
    grants = b"""roles: {reader: R}
grants:
  - {id: g, role: reader, route: files, methods: [GET], paths: [/files/*], expires: 2030-01-01}
denies:
  - {id: d, route: files, paths: [/files/any], why: W.}
"""
    with policy_of(**{"grants.yaml": grants}) as made:
        found = access(made, subject("n1", "reader"), probes_of(made, "files"), NOW)
    assert found is not None
    assert (found.ways[0].paths, found.exceptions) == (("/files/*",), ("GET /files/any",))


def test_a_stream_of_a_policy_without_an_inventory_leads_to_each_segment(policy: Policy) -> None:
    found = who_document(policy, "shell", [], NOW, 10_000, silent_or_none)
    assert {each["role"] for each in found["classes"]} == {("writer",)}
    assert {path for each in found["classes"] for way in each["access"]["ways"] for path in way["paths"]} == {
        "any (segment lab, hardware)"
    }


def test_a_policy_that_tells_all_nodes_apart_still_answers_for_routes_that_are_no_streams() -> None:
    own = b'package sallyport.custom\n\ndeny contains "no" if input.target.name == "x"\n'
    fleet = [subject(f"n{number}", "reader") for number in range(100)]
    with policy_of(**{"rules/own.rego": own}) as made:
        assert len(who_document(made, "files", fleet, NOW, 10_000, silent_or_none)["identities"]) == 100
        with pytest.raises(Fault) as fault:
            who_document(made, "shell", fleet, NOW, 10_000, silent_or_none)
    assert fault.value.reason is Reason.POLICY_BOMB


def silent_or_none(count: int) -> bool:
    return count in {0, 1}

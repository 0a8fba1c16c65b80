"""Explanations: what failed, which grants came near, what to do."""

from __future__ import annotations

import asyncio
import functools
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from foundation.decisionlog.masking import Mask
from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.identity import AttestationClass, Posture, Verdict
from foundation.reasons import Reason
from policies.compile import compile_policy
from policies.explain import Evidence, Explanation, explanation
from policies.frozen import Freezer
from policies.model import Query
from policies.present import explanation_view
from policies.projection import Reads
from policies.settings import CompileSettings
from policies.wasm import WasmEngine
from tests.support.policy import engine_of, starter, workspace
from tests.support.queries import QUERIES
from tests.support.workspaces import node, query


@pytest.fixture(scope="module")
def engine() -> Iterator[WasmEngine]:
    made = engine_of(starter())
    yield made
    asyncio.run(made.close())


def record_of(engine: WasmEngine, asked: Query) -> dict[str, Any]:
    answer = engine.decide_now(asked)
    return {
        "id": "d-1",
        "at": 1_800_000_000.0,
        "allow": answer.allow,
        "reasons": [reason.code for reason in answer.reasons],
        "identity": str(asked.identity.id),
        "route": asked.route,
        "method": asked.request.method,
        "target": asked.request.target.decode(),
        "grant": answer.grant,
        "numbers": [3, 0, 0, 0],
        "input": asked.to_input(),
    }


def explain(engine: WasmEngine, asked: Query) -> Explanation:
    return explanation(record_of(engine, asked), Evidence(asyncio.run(engine.explain(asked.to_input())), 3))


def test_a_permit_names_its_grant_and_needs_no_remedy(engine: WasmEngine) -> None:
    found = explain(engine, query())
    assert (found.allowed, found.grant, found.remedies, found.near_misses) == (True, "agent-health", (), ())


def test_the_nearest_grant_comes_first_with_what_it_lacks(engine: WasmEngine) -> None:
    found = explain(engine, query(method="POST", path=("v3", "kv", "put")))
    assert found.reasons == (Reason.PATH_NOT_GRANTED,)
    assert found.remedies == (Reason.PATH_NOT_GRANTED.remedy,)
    assert found.near_misses[0].grant == "agent-read"
    assert found.near_misses[0].lacks == ("it covers /v3/kv/range, /v3/watch",)
    other = next(miss for miss in found.near_misses if miss.grant == "operator-control-plane")
    assert other.lacks == ("the caller does not hold the role fleet-operator",)


def test_a_failed_fact_says_what_was_found_and_asked_for(engine: WasmEngine) -> None:
    found = explain(engine, query(attestation=AttestationClass.NONE))
    assert found.sentences[1:] == (
        "the caller's attestation is of class none; the route asks for hardware, virtual",
        "grant agent-health would allow it but for that",
    )


def test_a_deny_gives_its_ground(engine: WasmEngine) -> None:
    found = explain(engine, query(path=("v3", "auth", "enable")))
    assert found.reasons[0] is Reason.DENY_OVERRIDE
    assert any(text.startswith("deny no-store-admin: ") for text in found.sentences)


def test_an_api_denial_names_the_roles_that_may(engine: WasmEngine) -> None:
    found = explain(engine, query("api.policy.publish", path=(), kind=Kind.OPERATOR, roles=("viewer",)))
    assert "roles that may call this: security" in found.sentences


def test_every_lack_has_its_sentence() -> None:
    made = engine_of(
        workspace(
            grants="roles: {a: b, c: d}\ngrants:\n  - {id: g, role: a, route: r, methods: [DELETE], paths: [/x, /y/**],"
            " sites: [oslo], tiers: [3], expires: 2020-01-01}\n"
        )
    )
    found = explain(made, query("r", roles=("c",), path=("z",), upgrade="websocket"))
    asyncio.run(made.close())
    assert found.near_misses[0].lacks == (
        "the caller does not hold the role a",
        "it covers /x, /y/**",
        "it covers DELETE; an upgrade to websocket needs UPGRADE",
        "it is for sites oslo; the caller's is site-a",
        "it is for tiers 3",
        "it ended at 2020-01-01T00:00:00Z",
    )


def test_every_requirement_has_its_sentence() -> None:
    made = engine_of(
        workspace(
            routes="routes: [{name: r, type: stream, service: s, kinds: [gateway], class: critical, tiers: [1],"
            " segments: [lab], attestation: hardware}]",
            segments="segments: [{name: lab}, {name: edge}]",
            grants="grants: []",
        )
    )
    failed = Posture(AttestationClass.NONE, Verdict.FAILED)
    found = explain(made, query("r", tier=2, verdict=Verdict.FAILED, target=node("b"), target_posture=failed))
    asyncio.run(made.close())
    assert [text for text in found.sentences if "; " in text or "last attestation" in text][:7] == [
        "the caller is a node; the route takes gateway",
        "the caller's last attestation failed",
        "the target's last attestation failed",
        "the caller's attestation is of class virtual; the route asks for hardware",
        "the target's attestation is of class none; the route asks for hardware",
        "the caller is of tier 2; the route takes 1",
        "the caller is in segment edge; the route takes lab",
    ]


def test_without_policy_the_reason_speaks_for_itself(engine: WasmEngine) -> None:
    record = {**record_of(engine, query()), "allow": False, "reasons": ["identity_revoked"], "route": ""}
    del record["input"]
    found = explanation(record)
    assert found.sentences == (Reason.IDENTITY_REVOKED.meaning,)
    assert found.remedies == (Reason.IDENTITY_REVOKED.remedy,)


@pytest.mark.parametrize(
    ("reason", "facts", "sentence"),
    [
        ("certificate_expired", {"serial": "aa", "certificate_ended": 1.5e9}, "certificate aa ended at 2017-07-14T"),
        ("certificate_not_yet_valid", {"serial": "aa", "certificate_begins": 1.5e9}, "certificate aa begins at 2017-"),
        ("attestation_expired", {"attestation_ended": 1.5e9}, "the last attestation ended at 2017-07-14T02:40:00Z"),
        ("posture_failed", {"attestation": "virtual"}, "it attested with a TPM of class virtual"),
        (
            "identity_revoked",
            {"serial": "", "revocation": 7, "revoked_at": 1.5e9, "revoked_for": "stolen"},
            "revocation 7, at 2017-07-14T02:40:00Z, for stolen",
        ),
        ("identity_quarantined", {"state": "quarantined"}, "the inventory has it as quarantined"),
        ("grant_expired", {"grant": "g", "grant_ended": 1.5e9}, "grant g ended at 2017-07-14T02:40:00Z"),
        ("rate_limited", {"grant": "g", "per_second": 5, "burst": 9}, "grant g allows 5 requests a second"),
        ("route_unknown", {"detail": "host nowhere.test"}, "host nowhere.test"),
    ],
)
def test_a_refusal_by_fixed_rule_says_which_fact_and_until_when(
    reason: str, facts: dict[str, Any], sentence: str
) -> None:
    record = {
        "id": "d-1",
        "at": 1.8e9,
        "allow": False,
        "reasons": [reason],
        "identity": "i",
        "route": "",
        "facts": facts,
    }
    found = explanation({**record, "method": "", "target": "", "grant": "", "numbers": [3, 0, 0, 0]})
    assert found.sentences[0] == Reason.from_code(reason).meaning
    assert found.sentences[1].startswith(sentence)
    assert found.remedies == (Reason.from_code(reason).remedy,)
    assert Explanation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_end_of_a_stream_is_told_at_both_ends(engine: WasmEngine) -> None:
    permit = record_of(engine, query())
    cut = {
        **permit,
        "id": "d-2",
        "allow": False,
        "reasons": ["no_grant"],
        "cut": "d-1",
        "facts": {"cut_for": "cut_by_change"},
    }
    ran, ended = explanation(permit, Evidence(cut=cut)), explanation(cut)
    assert (ran.cut, ended.ended) == ("d-2", "d-1")
    changed, refused = Reason.CUT_BY_CHANGE.meaning, Reason.NO_GRANT.meaning
    assert ran.sentences[-1] == f"its stream was cut at 2027-01-15T08:00:00Z: {changed}; {refused}"
    assert ended.sentences[-1] == "this ended the stream that ran by d-1"


@given(asked=QUERIES, route=st.sampled_from(("control-plane", "models", "api.policy.list")))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_record_keeps_is_enough(engine: WasmEngine, asked: Query, route: str) -> None:
    """Of the question only what the decision can read is kept. The explanation asks for no more, but the time."""
    identity = replace(asked.identity, roles=("edge-agent", *asked.identity.roles))
    asked = asked._replace(route=route, identity=identity)
    kept = json.loads(Freezer(_starter_reads(), Mask(bytes(32)))(asked))
    whole, part = asked.to_input(), {"now": asked.now, **kept}
    assert asyncio.run(engine.explain(part)) == asyncio.run(engine.explain(whole))


@functools.cache
def _starter_reads() -> Reads:
    return compile_policy(starter().rego, starter().data, CompileSettings()).reads


def test_a_policy_that_changed_its_mind_is_told(engine: WasmEngine) -> None:
    record = {**record_of(engine, query()), "allow": False, "reasons": ["no_grant"]}
    found = explanation(record, Evidence(asyncio.run(engine.explain(query().to_input())), 4))
    assert found.sentences[-2:] == (
        "revision 3 is no longer kept: revision 4 explains, which may read more",
        "asked again, revision 4 answers: granted",
    )


@pytest.mark.parametrize(
    "document",
    [
        {"failed": [{}]},
        {"failed": [{"fact": "unheard", "found": 1, "needs": []}]},
        {"near_misses": [{"grant": "g", "role": "r", "expires": "x", "lacks": []}]},
        {"near_misses": [{"grant": "g", "role": "r", "expires": 1, "lacks": ["luck"]}]},
        {"denies": [1]},
        {"decision": 1},
    ],
)
def test_a_garbled_document_is_a_fault(engine: WasmEngine, document: dict[str, Any]) -> None:
    with pytest.raises(Fault) as caught:
        explanation({**record_of(engine, query()), "allow": False}, Evidence(document))
    assert caught.value.reason is Reason.ENGINE_ANSWER_INVALID


def test_it_is_json_and_text_without_markup(engine: WasmEngine) -> None:
    found = explain(engine, query(path=("[red]x",)))
    assert json.loads(json.dumps(found.to_json()))["reasons"] == ["path_not_granted"]
    text = io.StringIO()
    Console(file=text, width=100).print(explanation_view(found))
    assert "[red]x" in text.getvalue()
    assert "denied" in text.getvalue()
    assert "agent-health" in text.getvalue()

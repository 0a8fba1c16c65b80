"""Explanations: what failed, which grants came near, what to do."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.identity import AttestationClass, Posture, Verdict
from foundation.reasons import Reason
from policies.explain import Explanation, explanation
from policies.model import Query
from policies.present import explanation_view
from policies.wasm import WasmEngine
from tests.support.policy import engine_of, starter, workspace
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
    return explanation(record_of(engine, asked), asyncio.run(engine.explain(asked.to_input())))


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
    assert "the caller's attestation is of class none; the route asks for hardware, virtual" in found.sentences


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


def test_a_policy_that_changed_its_mind_is_told(engine: WasmEngine) -> None:
    record = {**record_of(engine, query()), "allow": False, "reasons": ["no_grant"]}
    found = explanation(record, asyncio.run(engine.explain(query().to_input())))
    assert "the policy in force now would answer otherwise: granted" in found.sentences


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
        explanation({**record_of(engine, query()), "allow": False}, document)
    assert caught.value.reason is Reason.ENGINE_ANSWER_INVALID


def test_it_is_json_and_text_without_markup(engine: WasmEngine) -> None:
    found = explain(engine, query(path=("[red]x",)))
    assert json.loads(json.dumps(found.to_json()))["reasons"] == ["path_not_granted"]
    text = io.StringIO()
    Console(file=text, width=100).print(explanation_view(found))
    assert "[red]x" in text.getvalue()
    assert "denied" in text.getvalue()
    assert "agent-health" in text.getvalue()

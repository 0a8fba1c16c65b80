"""The default policy over the starter workspace, by the embedded engine: what a newcomer may rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from foundation.identifiers import Kind
from foundation.identity import AttestationClass, Posture, SnapshotNumbers, Verdict
from foundation.reasons import Reason
from policies.compile import compile_policy
from policies.model import FOREVER, Denial, Permit, Staleness, judge
from policies.settings import CompileSettings
from policies.wasm import WasmEngine
from tests.support.policy import engine_of, starter, workspace
from tests.support.workspaces import node, query

NUMBERS = SnapshotNumbers(1, 0, 0, 0)


@pytest.fixture(scope="module")
def engine() -> Iterator[WasmEngine]:
    made = engine_of(starter())
    yield made
    asyncio.run(made.close())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ("version",)),
        ("HEAD", ("version",)),
        ("GET", ("health",)),
        ("POST", ("v3", "kv", "range")),
        ("POST", ("v3", "watch")),
    ],
)
def test_an_agent_reads_the_control_plane(engine: WasmEngine, method: str, path: tuple[str, ...]) -> None:
    assert engine.decide_now(query(method=method, path=path)).allow


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "POST", "path": ("v3", "kv", "put")}, Reason.PATH_NOT_GRANTED),
        ({"method": "POST", "path": ("v3", "kv", "range", "")}, Reason.PATH_NOT_GRANTED),
        ({"method": "DELETE"}, Reason.METHOD_NOT_GRANTED),
        ({"upgrade": "websocket"}, Reason.METHOD_NOT_GRANTED),
        ({"roles": ()}, Reason.ROLE_MISSING),
        ({"attestation": AttestationClass.NONE}, Reason.POSTURE_INSUFFICIENT),
        ({"verdict": Verdict.FAILED}, Reason.POSTURE_FAILED),
        ({"kind": Kind.SERVICE}, Reason.KIND_NOT_ALLOWED),
        ({"kind": Kind.GATEWAY}, Reason.KIND_NOT_ALLOWED),
        ({"staleness": Staleness.EXPIRED}, Reason.STALENESS_EXCEEDED),
        ({"path": ("v3", "maintenance", "snapshot")}, Reason.DENY_OVERRIDE),
        ({"route": "models", "path": ("models", "a"), "tier": 3}, Reason.TIER_INSUFFICIENT),
        ({"route": "models", "path": ("models", "a"), "segment": "lab"}, Reason.SEGMENT_FORBIDDEN),
        ({"route": "nowhere"}, Reason.ROUTE_UNKNOWN),
    ],
)
def test_a_denial_begins_with_the_reason_that_counts(
    engine: WasmEngine, changes: dict[str, object], reason: Reason
) -> None:
    answer = engine.decide_now(query(**changes))  # type: ignore[arg-type]
    assert not answer.allow
    assert answer.reasons[0] is reason


def test_nothing_is_allowed_when_nothing_is_known() -> None:
    made = engine_of(workspace(routes="routes: []", grants="grants: []", segments="segments: []"))
    assert not made.decide_now(query()).allow
    asyncio.run(made.close())


def test_production_takes_hardware_alone() -> None:
    made = engine_of(workspace(AttestationClass.HARDWARE))
    asked = {"route": "r", "roles": ("agent",)}
    assert made.decide_now(query(**asked, attestation=AttestationClass.HARDWARE)).allow  # type: ignore[arg-type]
    virtual = made.decide_now(query(**asked, attestation=AttestationClass.VIRTUAL))  # type: ignore[arg-type]
    assert virtual.reasons == (Reason.POSTURE_INSUFFICIENT,)
    asyncio.run(made.close())


def test_the_grant_s_end_is_judged_outside_policy(engine: WasmEngine) -> None:
    answer = engine.decide_now(query())
    before, at = query(now=int(answer.deadline) - 1), query(now=int(answer.deadline))
    assert engine.decide_now(before) == engine.decide_now(at) == answer
    assert isinstance(judge("d", before, answer, FOREVER, NUMBERS), Permit)
    denial = judge("d", at, answer, FOREVER, NUMBERS)
    assert isinstance(denial, Denial)
    assert denial.reason is Reason.GRANT_EXPIRED


def test_policy_reads_neither_clock_nor_more_than_it_needs() -> None:
    compiled = compile_policy(starter().rego, starter().data, CompileSettings())
    reads = {".".join(path) for path in compiled.reads}
    assert "now" not in reads
    assert "" not in reads
    assert not reads & {"identity", "request", "request.query", "request.host", "identity.labels"}


def test_a_stream_needs_a_target_that_is_sound() -> None:
    made = engine_of(
        workspace(
            routes="routes: [{name: ssh, type: stream, service: ssh, kinds: [node]}]",
            grants="roles: {agent: a}\ngrants: [{id: g, role: agent, route: ssh, expires: 2030-01-01}]",
            segments="segments: [{name: edge, reaches: [lab]}, {name: lab}]",
        )
    )
    sound, failed = Posture(AttestationClass.VIRTUAL, Verdict.PASSED), Posture(AttestationClass.VIRTUAL, Verdict.FAILED)
    ask = {"route": "ssh", "path": (), "roles": ("agent",)}
    assert made.decide_now(query(**ask, target=node("b", "lab"), target_posture=sound)).allow  # type: ignore[arg-type]
    for target, posture in ((node("b", "edge"), sound), (node("b", "lab"), failed), (None, None)):
        assert not made.decide_now(query(**ask, target=target, target_posture=posture)).allow  # type: ignore[arg-type]
    asyncio.run(made.close())


@pytest.mark.parametrize(
    ("kind", "roles", "allowed", "denied"),
    [
        (
            Kind.OPERATOR,
            ("viewer",),
            ("inventory.list", "audit.show", "decisions.explain"),
            ("inventory.revoke", "policy.publish"),
        ),
        (Kind.OPERATOR, ("operator",), ("inventory.revoke", "tokens.create"), ("policy.publish", "inventory.update")),
        (Kind.OPERATOR, ("security",), ("policy.publish", "inventory.update"), ("feed.follow", "renew", "attest")),
        (Kind.OPERATOR, ("break-glass",), ("inventory.revoke",), ("policy.publish", "tokens.create")),
        (Kind.OPERATOR, (), (), ("inventory.list", "self.show")),
        (
            Kind.NODE,
            ("security",),
            ("renew", "attest", "self.show", "self.bundle", "self.report"),
            ("feed.follow", "inventory.list", "policy.publish"),
        ),
        (Kind.GATEWAY, ("security",), ("feed.follow", "renew"), ("inventory.list", "policy.publish")),
    ],
)
def test_who_may_call_our_own_api(
    engine: WasmEngine, kind: Kind, roles: tuple[str, ...], allowed: tuple[str, ...], denied: tuple[str, ...]
) -> None:
    ask = {"kind": kind, "roles": roles, "path": ()}
    assert [name for name in allowed if not engine.decide_now(query(f"api.{name}", **ask)).allow] == []  # type: ignore[arg-type]
    assert [name for name in denied if engine.decide_now(query(f"api.{name}", **ask)).allow] == []  # type: ignore[arg-type]

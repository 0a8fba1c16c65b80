"""The gateway answers about access by what it enforces and knows, and says who is shut out all the same."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from typing import Any

import pytest

from foundation.api import Call
from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import (
    AttestationClass,
    IdentityChanged,
    IdentityRecord,
    Posture,
    PostureChanged,
    Revocation,
    State,
    Verdict,
)
from foundation.reasons import Reason
from gateway.api import access as asked
from gateway.api.access import AccessApi
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.settings import CompileSettings, PolicySettings
from tests.fakes.clock import ManualClock
from tests.fakes.trust import FakeEngine
from tests.support.policy import starter

NOW = 1_800_000_000.0


@functools.cache
def compiled() -> CompiledPolicy:
    return compile_policy(starter().rego, starter().data, CompileSettings())


def named(name: str, kind: Kind = Kind.NODE) -> SpiffeId:
    return SpiffeId("fleet.test", kind, name)


class Bench:
    """The starter's policy and a few nodes."""

    def __init__(self) -> None:
        self.store, self.decides = SnapshotStore(), FakeEngine()
        self.api = AccessApi(self.store, PolicySettings(), ManualClock(NOW))
        self.store.publish_policy(PolicyPart(4, "d", self.decides, RouteTable(starter().routes), compiled()))
        for name, state in (("good", State.ACTIVE), ("late", State.ACTIVE), ("shut", State.QUARANTINED)):
            self.add(name, state, NOW + 60 if name != "late" else NOW - 1)

    def add(self, name: str, state: State, attested_until: float) -> None:
        record = IdentityRecord(named(name), state, 1, ("edge-agent",), 1, "eu", "s1", "edge")
        self.store.apply(IdentityChanged(1, record))
        posture = Posture(AttestationClass.HARDWARE, Verdict.PASSED)
        self.store.apply(PostureChanged(1, named(name), posture, attested_until))

    async def ask(self, path: str, /, **query: str) -> Any:
        for route in self.api.routes():
            parameters = matched(route.path, path)
            if parameters is not None:
                return json.loads((await route.handler(Call(parameters, query, b""))).body)  # type: ignore[union-attr]
        raise AssertionError(path)


def matched(pattern: str, path: str) -> dict[str, str] | None:
    pairs = list(zip(pattern.split("/"), path.split("/"), strict=False))
    if pattern.count("/") != path.count("/") or any(a != b for a, b in pairs if not a.startswith("{")):
        return None
    return {a[1:-1]: b for a, b in pairs if a.startswith("{")}


async def test_who_can_reach_and_who_is_shut_out() -> None:
    bench = Bench()
    bench.add("stolen", State.ACTIVE, NOW + 60)
    bench.store.apply(Revocation(1, named("stolen"), "", "stolen", NOW))
    found = await bench.ask("/v1/access/routes/models")
    assert (found["revision"], found["at"], found["asked"]) == (4, int(NOW), 4)
    assert {each["name"]: each["refusal"] for each in found["identities"]} == {
        "good": "",
        "late": "attestation_expired",
        "shut": "identity_quarantined",
        "stolen": "identity_revoked",
    }
    assert found["identities"][0]["ways"][0]["grant"] == "agent-models"
    assert found["classes"][0]["role"] == ["edge-agent"]
    assert bench.decides.asked == []  # what decides requests is left alone


async def test_what_can_reach() -> None:
    found = await Bench().ask("/v1/access/identities/node/good")
    assert [each["route"] for each in found["routes"]] == ["control-plane", "models"]


async def test_why() -> None:
    bench = Bench()
    found = await bench.ask("/v1/access/identities/node/good/routes/models")
    assert (found["allowed"], found["grant"], found["revision"]) == (True, "agent-models", 4)
    found = await bench.ask("/v1/access/identities/node/late/routes/models")
    assert (found["allowed"], found["reasons"]) == (False, ["attestation_expired"])
    found = await bench.ask("/v1/access/identities/node/good/routes/control-plane", method="POST", path="/v3/kv/put")
    assert found["reasons"] == ["path_not_granted"]


@pytest.mark.parametrize("path", ["identities/node/nobody", "identities/operator/good", "routes/nowhere"])
async def test_what_is_not_there(path: str) -> None:
    with pytest.raises(Fault) as fault:
        await Bench().ask(f"/v1/access/{path}")
    assert fault.value.reason is Reason.NOT_FOUND


async def test_without_a_revision_nothing_is_answered() -> None:
    bench = Bench()
    bench.store = SnapshotStore()
    bench.api = AccessApi(bench.store, PolicySettings(), ManualClock(NOW))
    with pytest.raises(Fault) as fault:
        await bench.ask("/v1/access/routes/models")
    assert fault.value.reason is Reason.REVISION_MISSING


async def test_one_question_at_a_time_and_none_goes_on_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, begun, ended = Bench(), threading.Event(), threading.Event()

    def endless(policy: Any, route: str, subjects: Any, now: int, most: int, tick: Any) -> Any:
        begun.set()
        try:
            while tick(1):
                pass
        finally:
            ended.set()

    monkeypatch.setattr(asked, "who_document", endless)
    first = asyncio.create_task(bench.ask("/v1/access/routes/models"))
    await asyncio.to_thread(begun.wait, 60)
    with pytest.raises(Fault) as fault:
        await bench.ask("/v1/access/identities/node/good")
    assert fault.value.reason is Reason.OVERLOADED
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.to_thread(ended.wait, 60)

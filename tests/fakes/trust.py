"""Identities, postures and policies in memory, for tests of what rests on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from policies.model import FOREVER, Answer, CanonicalRequest, FrozenInput, Query

TRUST_DOMAIN = "fleet.example"
ALLOW = Answer(True, (Reason.GRANTED,), "g-1", FOREVER)
DENY = Answer(False, (Reason.NO_GRANT,))
HARDWARE = Posture(AttestationClass.HARDWARE, Verdict.PASSED)


def spiffe(name: str = "edge-1", kind: Kind = Kind.NODE) -> SpiffeId:
    return SpiffeId(TRUST_DOMAIN, kind, name)


def record(
    name: str = "edge-1", *, state: State = State.ACTIVE, epoch: int = 1, kind: Kind = Kind.NODE
) -> IdentityRecord:
    return IdentityRecord(spiffe(name, kind), state, epoch, roles=("edge-agent",), tier=2, site="lab", segment="edge")


def request(method: str = "GET", *path: str) -> CanonicalRequest:
    return CanonicalRequest(method, "get", "control.example", path, (), "", ("/" + "/".join(path)).encode())


class FakeEngine:
    """Implements `policies.engine.PolicyEngine`: answers by a function, which tests replace."""

    def __init__(self, answer: Callable[[Query], Answer] = lambda query: ALLOW, *, cached: bool = False) -> None:
        self.answer = answer
        self.cached = cached
        self.asked: list[Query] = []

    def decide_now(self, query: Query) -> Answer | None:
        return self._with_input(query) if self.cached else None

    async def decide(self, query: Query) -> Answer:
        self.asked.append(query)
        return self._with_input(query)

    def _with_input(self, query: Query) -> Answer:
        return replace(self.answer(query), input=FrozenInput(b"", json.dumps(query.to_input()).encode()))

    async def explain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    async def close(self) -> None:
        pass

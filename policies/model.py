"""What is asked of policy, and what it answers: `Query` in, `Permit` or `Denial` out.

Laws held here:
- a `Permit` is made by `judge` alone, from an engine's answer; whatever forwards takes a `Permit`;
- anything that is not exactly an answer by the schema is a `Denial` (fail closed);
- the query is frozen before the engine sees it, `now` included, so that a decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from foundation.identity import IdentityRecord, Posture, SnapshotNumbers
from foundation.reasons import Reason

FOREVER = float("inf")
_SEAL = object()
_PERMITTING = frozenset({Reason.GRANTED, Reason.BREAK_GLASS})
MAX_REASONS = 16
_MAX_TIME = 1e12
MAX_OBLIGATIONS = 16


class Staleness(StrEnum):
    """How old the gateway's facts are, as a class; the bounds are the route class's."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


ACTIONS: Mapping[str, str] = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
"""HTTP methods that a request may have, and what policy calls each."""


@dataclass(frozen=True, slots=True)
class CanonicalRequest:
    """One request as policy and upstream both see it. `action` is the verb for policy: `get` for GET and HEAD, `create`
    for what opens a channel (an upgrade) whatever the method, otherwise by method (`create`, `update`, `patch`,
    `delete`). `path` is decoded segments; `target` the bytes that will be forwarded."""

    method: str
    action: str
    host: str
    path: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    upgrade: str
    target: bytes


STREAM = CanonicalRequest("", "create", "", (), (), "", b"")
"""What is asked on a `stream` route: to open it. It has no method and no path."""


class Query(NamedTuple):
    """One question. `target` is the node that offers the service of a `stream` route, with its posture."""

    now: int
    identity: IdentityRecord
    posture: Posture
    route: str
    request: CanonicalRequest
    staleness: Staleness
    target: IdentityRecord | None = None
    target_posture: Posture | None = None

    def to_input(self) -> dict[str, Any]:
        """The document that Rego sees as `input`; `policies/rego/schemas/input.json` describes it."""
        document: dict[str, Any] = {
            "now": self.now,
            "identity": _identity(self.identity, self.posture),
            "route": self.route,
            "request": {
                "method": self.request.method,
                "action": self.request.action,
                "host": self.request.host,
                "path": list(self.request.path),
                "query": [list(pair) for pair in self.request.query],
                "upgrade": self.request.upgrade,
            },
            "staleness": self.staleness.value,
        }
        if self.target is not None and self.target_posture is not None:
            document["target"] = _identity(self.target, self.target_posture)
        return document


@dataclass(frozen=True, slots=True)
class Obligation:
    """Something the gateway must do with a permitted request, such as `rate` {per_second, burst}."""

    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


class FrozenInput(NamedTuple):
    """What the record keeps of a question: the part of `input` that policy can read, as one JSON object. Equal keys
    mean equal documents; an empty key equals none."""

    key: bytes
    document: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine's answer, parsed. `deadline` is when the deciding grant ends, in seconds since the Unix epoch. `input`
    is what was asked, for the record: no part of what is answered."""

    allow: bool
    reasons: tuple[Reason, ...]
    grant: str = ""
    deadline: float = FOREVER
    obligations: tuple[Obligation, ...] = ()
    input: FrozenInput | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Denial:
    """A refusal. `reasons` begins with the one that goes outward. `facts` are what it rests on where that is no part of
    `input`, for people: plain JSON values by name (`policies.explain` has a sentence for each)."""

    id: str
    query: Query | None
    reasons: tuple[Reason, ...]
    numbers: SnapshotNumbers
    input: FrozenInput | None = field(default=None, compare=False, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def reason(self) -> Reason:
        return self.reasons[0]


class Permit:
    """Permission for exactly this query, until `deadline`. Only `judge` can make one."""

    __slots__ = ("deadline", "grant", "id", "input", "numbers", "obligations", "query", "reasons")

    def __init__(
        self,
        seal: object,
        *,
        decision_id: str,
        query: Query,
        answer: Answer,
        deadline: float,
        numbers: SnapshotNumbers,
    ) -> None:
        if seal is not _SEAL:
            raise TypeError("a Permit is made by policies.model.judge alone")
        self.id = decision_id
        self.query = query
        self.reasons = answer.reasons
        self.grant = answer.grant
        self.obligations = answer.obligations
        self.input = answer.input
        self.deadline = deadline
        self.numbers = numbers


Decision = Permit | Denial


def judge(decision_id: str, query: Query, answer: Answer, trust_deadline: float, numbers: SnapshotNumbers) -> Decision:
    """The decision that follows from `answer` at `query.now`.

    trust_deadline: the nearest of certificate, attestation and staleness step, already checked to lie ahead. A grant
    that has ended by `now` denies with `GRANT_EXPIRED`: policy names the grant's end and need not read the clock.
    """
    if not answer.allow:
        return Denial(decision_id, query, answer.reasons, numbers, answer.input)
    if answer.deadline <= query.now:
        ended = {"grant": answer.grant, "grant_ended": answer.deadline}
        return Denial(decision_id, query, (Reason.GRANT_EXPIRED,), numbers, answer.input, ended)
    deadline = min(answer.deadline, trust_deadline)
    return Permit(_SEAL, decision_id=decision_id, query=query, answer=answer, deadline=deadline, numbers=numbers)


def parse_answer(value: object) -> Answer:
    """The answer in an engine's result document. Whatever is not one by the schema is a denial:
    `ENGINE_ANSWER_INVALID`."""
    try:
        return _parse_answer(value)
    except (KeyError, TypeError, ValueError):
        return Answer(False, (Reason.ENGINE_ANSWER_INVALID,))


def _parse_answer(value: object) -> Answer:
    if not isinstance(value, dict) or not set(value) <= {
        "allow",
        "reasons",
        "grant",
        "deadline",
        "obligations",
    }:
        raise ValueError
    allow, codes, grant = value["allow"], value["reasons"], value.get("grant", "")
    if not isinstance(allow, bool) or not isinstance(codes, list) or not 0 < len(codes) <= MAX_REASONS:
        raise TypeError
    reasons = tuple(Reason.from_code(code) for code in codes)
    if any((reason in _PERMITTING) is not allow for reason in reasons) or not isinstance(grant, str):
        raise ValueError
    obligations = tuple(_obligation(item) for item in value.get("obligations", []))
    if len(obligations) > MAX_OBLIGATIONS:
        raise ValueError
    return Answer(allow, reasons, grant, _deadline(value.get("deadline")), obligations)


def _deadline(value: object) -> float:
    if value is None:
        return FOREVER
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not abs(value) < _MAX_TIME:  # NaN is less than nothing, and later than nothing: such a grant would never end
        raise ValueError
    return float(value)


def _obligation(value: object) -> Obligation:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise TypeError
    return Obligation(value["kind"], {key: item for key, item in value.items() if key != "kind"})


def _identity(record: IdentityRecord, posture: Posture) -> dict[str, Any]:
    return {
        "id": str(record.id),
        "kind": record.id.kind.value,
        "name": record.id.name,
        "roles": sorted(record.roles),
        "tier": record.tier,
        "region": record.region,
        "site": record.site,
        "segment": record.segment,
        "labels": dict(record.labels),
        "versions": dict(record.versions),
        "attestation": posture.attestation.value,
        "verdict": posture.verdict.value,
    }

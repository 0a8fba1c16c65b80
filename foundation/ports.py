"""The protocols that packages meet through. `gateway/wiring/` fills each; nobody imports the other side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from foundation.identifiers import SpiffeId
from foundation.identity import Change, IdentityRecord, SnapshotNumbers


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls an API: proven by a client certificate, by a JWT bound to one, or by the Unix socket's peer credentials
    (`via` is `certificate`, `jwt` or `socket`). `serial` and `not_after` (seconds since the Unix epoch) are the client
    certificate's; `issuer` identifies the key that signed it, in lower-case hex."""

    id: SpiffeId
    roles: tuple[str, ...]
    via: str
    serial: str = ""
    not_after: float = float("inf")
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One change of trust. `kind` is dotted and in the past tense (`node.enrolled`); `subject` is what changed;
    `detail` holds plain JSON values and never a secret; `reason` is the code when it records a refusal; `trace` is the
    W3C trace ID of what caused it, in hex."""

    kind: str
    actor: str
    subject: str
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    trace: str = ""


class AuditLog(Protocol):
    """The tamper-evident log. Write before the effect."""

    async def append(self, event: AuditEvent) -> int:
        """The event's index, once it is on disk. Raises `Fault(AUDIT_FAILED)`; the caller then does nothing."""
        ...


class ApiAuthorizer(Protocol):
    """Decides who may call an API route, by the policy engine."""

    async def authorise(self, caller: Caller, route: str, method: str) -> str:
        """The decision's id when `caller` may call the API route of this name. Raises `Fault` with the denial's
        reason."""
        ...


class IdentityDirectory(Protocol):
    """Knows the present state of identities and their certificates: the authority's ledger, or a gateway's snapshot."""

    async def standing(self, identity: SpiffeId, serial: str) -> IdentityRecord:
        """The record of `identity`, when it and its certificate `serial` (lower-case hex) may be used now. Raises
        `Fault(IDENTITY_UNKNOWN | IDENTITY_REVOKED | IDENTITY_QUARANTINED)`."""
        ...


class ChangeFeed(Protocol):
    """The authority's numbered changes, as gateways follow them."""

    def follow(self, since: SnapshotNumbers | None) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Changes after `since` in order, then new ones as they are committed. With `None`, or a number too old to be
        continued, the whole present state comes first, as the changes that would make it. A heartbeat comes at least
        every five seconds, and once right after the catching-up."""
        ...


@dataclass(slots=True)
class DecisionEntry:
    """One decision for the record. `at` is seconds since the Unix epoch; `reasons` are codes; `target` is the request
    target as it was authorised. Texts are empty where they do not apply.

    input: the part of the frozen input that policy can read, as one JSON object; None when policy was not asked. An
    entry of the same `input_key` may be referred to instead: equal keys mean equal inputs; an empty key is never
    shared. facts: what a denial rests on where that is no part of the input, as plain JSON values. cut: the decision by
    which a stream ran that this one ended.
    critical: the route refuses rather than go unrecorded. lost: set by the recorder when the entry was not kept.
    """

    id: str
    at: float
    allow: bool
    reasons: tuple[str, ...]
    identity: str
    route: str
    method: str
    target: str
    grant: str
    numbers: SnapshotNumbers
    critical: bool = False
    input: bytes | None = None
    input_key: bytes = b""
    facts: Mapping[str, Any] | None = None
    cut: str = ""
    lost: bool = field(default=False, init=False)


@dataclass(frozen=True, slots=True)
class NodeWord:
    """A record of a decision as a node delivered it: `body` is whatever that says. `at` is by the node's clock,
    `received_at` by the authority's, both in seconds since the Unix epoch."""

    node: SpiffeId
    at: float
    received_at: float
    body: Mapping[str, Any]


class NodeWords(Protocol):
    """What nodes say of decisions."""

    async def of_decision(self, decision_id: str) -> tuple[NodeWord, ...]:
        """What nodes say of the decision with this ID, what was taken first in front; a few at most. Raises
        `Fault(STORAGE_FAILED)`."""
        ...


class DecisionRecorder(Protocol):
    """Puts decisions on record before their answers go out. Both calls are synchronous and cheap."""

    def record(self, entry: DecisionEntry) -> None:
        """Take one decision; it reaches the kernel with this turn of the event loop, or with `flush`."""
        ...

    def flush(self, entry: DecisionEntry) -> None:
        """Call before the effect or answer that `entry` decides goes out: hands to the kernel what is still here, and
        does nothing when that happened already. Raises `Fault(DECISION_UNRECORDED)` when `entry` is critical and was
        not kept."""
        ...

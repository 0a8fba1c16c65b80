"""The protocols that packages meet through. The orchestrator fills each; nobody imports the other side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from foundation.identifiers import SpiffeId
from foundation.identity import Change, SnapshotNumbers


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls an API: proven by a client certificate, by a JWT bound to one, or by the Unix socket's peer credentials
    (`via` is `certificate`, `jwt` or `socket`). `epoch` and `serial` are those of the certificate's identity."""

    id: SpiffeId
    roles: tuple[str, ...]
    via: str
    serial: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One change of trust. `kind` is dotted and in the past tense (`node.enrolled`); `subject` is what changed;
    `detail` holds plain JSON values and never a secret; `reason` is the code when it records a refusal."""

    kind: str
    actor: str
    subject: str
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


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


class ChangeFeed(Protocol):
    """The authority's numbered changes, as gateways follow them."""

    def follow(self, since: SnapshotNumbers | None) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Changes after `since` in order, then new ones as they are committed. With `None`, or a number too old to be
        continued, the whole present state comes first, as the changes that would make it. A heartbeat comes at least
        every five seconds, and once right after the catching-up."""
        ...


class DecisionRecorder(Protocol):
    """Puts a decision on record before its answer goes out."""

    def record(self, entry: Mapping[str, Any]) -> None:
        """Hand one decision over. Raises `Fault(DECISION_UNRECORDED)` when it cannot be kept."""
        ...

"""One immutable state of everything a decision rests on, and the one place where it is replaced.

A snapshot is a tuple of separately numbered parts that share structure with the one before (persistent maps). A
decision pins exactly one and records its numbers. Deadlines (`attested_until`) stand beside it: they only ever move,
and a moved deadline makes no new snapshot. One that moved later costs nothing; what is open is decided again for one
that came nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from immutables import Map

from foundation.identifiers import SpiffeId
from foundation.identity import (
    Change,
    Heartbeat,
    IdentityChanged,
    IdentityRecord,
    PolicyPublished,
    Posture,
    PostureChanged,
    Revocation,
    SnapshotNumbers,
)
from gateway.difference import RevisionDifference
from gateway.proxy.route import RouteTable
from gateway.streams.renewals import Renewals
from policies.engine import CompiledPolicy, PolicyEngine
from policies.model import FOREVER


@dataclass(frozen=True, slots=True)
class PolicyPart:
    """An enforced revision: its engine (with its cache), its routes, and what the engine was loaded from: without that,
    a change of revision is a change of everything. `asked_every` is how long, in seconds, an answer may stand: a policy
    that reads the clock is asked again about what runs, for no change tells that its time has come. `published_at` is
    in seconds since the Unix epoch, 0 when nobody knows."""

    revision: int
    digest: str
    engine: PolicyEngine
    routes: RouteTable
    compiled: CompiledPolicy | None = None
    asked_every: float = FOREVER
    published_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is true now. `policy` is None until a revision is loaded: then everything is denied."""

    policy: PolicyPart | None
    revocations_number: int
    revoked_serials: Map[str, Revocation]
    revoked_identities: Map[SpiffeId, Revocation]
    postures_number: int
    postures: Map[SpiffeId, Posture]
    inventory_number: int
    inventory: Map[SpiffeId, IdentityRecord]
    withdrawn_issuers: Map[str, Revocation] = Map()  # noqa: RUF009  # a value

    @property
    def numbers(self) -> SnapshotNumbers:
        policy = self.policy.revision if self.policy else 0
        return SnapshotNumbers(policy, self.revocations_number, self.postures_number, self.inventory_number)

    def is_revoked(self, identity: SpiffeId, serial: str, issuer: str) -> bool:
        """`issuer` is the identifier of the key that signed the certificate of this serial."""
        return (
            identity in self.revoked_identities
            or serial in self.revoked_serials
            or (bool(self.withdrawn_issuers) and issuer in self.withdrawn_issuers)
        )


EMPTY = Snapshot(None, 0, Map(), Map(), 0, Map(), 0, Map())


@dataclass(frozen=True, slots=True)
class Touched:
    """What a new snapshot changed, and when the authority committed that (seconds since the Unix epoch, 0 when nobody
    knows). Exchanges of these identities are decided again, those of withdrawn certificates and issuers are cut; on a
    new revision, what `policy` concerns is decided again."""

    identities: frozenset[SpiffeId] = frozenset()
    serials: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    policy: RevisionDifference | None = None
    at: float = 0.0


Listener = Callable[[Snapshot, Touched], None]


class SnapshotStore:
    """Holds the current snapshot and the deadlines; applies changes one at a time, then tells its listeners."""

    def __init__(self) -> None:
        self.current = EMPTY
        self.heartbeat_at = 0.0
        self.renewals = Renewals()
        self._attested_until: dict[SpiffeId, float] = {}
        self._listeners: list[Listener] = []

    def attested_until(self, identity: SpiffeId) -> float:
        """Seconds since the Unix epoch; 0 when nothing was ever attested."""
        return self._attested_until.get(identity, 0.0)

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every change of facts, before anything else sees the new snapshot decide."""
        self._listeners.append(listener)

    def publish_policy(self, part: PolicyPart) -> None:
        """Enforce `part` from now on. The caller has verified its signature and its rising number."""
        difference = RevisionDifference(self.current.policy, part)
        self._replace(replace(self.current, policy=part), Touched(policy=difference, at=part.published_at))

    def apply(self, change: Change) -> None:
        """Apply one of the authority's changes. Policy goes through `publish_policy` once it is loaded."""
        match change:
            case Revocation():
                self._revoke(change)
            case PostureChanged():
                self._posture(change)
            case IdentityChanged():
                self._identity(change)
            case Heartbeat():
                self.heartbeat_at = max(self.heartbeat_at, change.at)
            case PolicyPublished():
                raise TypeError("load the bundle, then call publish_policy")

    def present(self) -> Iterator[Change]:
        """The changes that would make the present facts, policy left out; may be read in another thread."""
        return _present(self.current, dict(self._attested_until), self.heartbeat_at)

    def _revoke(self, change: Revocation) -> None:
        now = self.current
        number = max(now.revocations_number, change.number)
        if change.issuer:
            issuers = now.withdrawn_issuers.set(change.issuer, change)
            after = replace(now, revocations_number=number, withdrawn_issuers=issuers)
            touched = Touched(issuers=frozenset({change.issuer}), at=change.at)
        elif change.serial:
            serials = now.revoked_serials.set(change.serial, change)
            after, touched = (
                replace(now, revocations_number=number, revoked_serials=serials),
                # The identity too: what stays open by that certificate's word has to be decided again.
                Touched(identities=frozenset({change.id}), serials=frozenset({change.serial}), at=change.at),
            )
        else:
            identities = now.revoked_identities.set(change.id, change)
            after = replace(now, revocations_number=number, revoked_identities=identities)
            touched = Touched(identities=frozenset({change.id}), at=change.at)
        self._replace(after, touched)

    def _posture(self, change: PostureChanged) -> None:
        is_nearer = change.attested_until < self.attested_until(change.id)
        self._attested_until[change.id] = change.attested_until
        if change.renewal is not None:
            self.renewals.renewed(change.renewal)
        now = self.current
        if now.postures.get(change.id) == change.posture:
            if is_nearer:  # what is open waits for the later one
                self._replace(now, Touched(identities=frozenset({change.id}), at=change.at))
            return
        after = replace(
            now,
            postures_number=max(now.postures_number, change.number),
            postures=now.postures.set(change.id, change.posture),
        )
        self._replace(after, Touched(identities=frozenset({change.id}), at=change.at))

    def _identity(self, change: IdentityChanged) -> None:
        now, record = self.current, change.record
        known = now.inventory.get(record.id)
        if known is not None and known.epoch > record.epoch:
            return
        revoked = now.revoked_identities
        if known is not None and record.epoch > known.epoch and record.id in revoked and record.state.value == "active":
            revoked = revoked.delete(record.id)
        after = replace(
            now,
            inventory_number=max(now.inventory_number, change.number),
            inventory=now.inventory.set(record.id, record),
            revoked_identities=revoked,
        )
        self._replace(after, Touched(identities=frozenset({record.id}), at=change.at))

    def _replace(self, after: Snapshot, touched: Touched) -> None:
        self.current = after
        for listener in self._listeners:
            listener(after, touched)


def _present(now: Snapshot, attested_until: dict[SpiffeId, float], heartbeat_at: float) -> Iterator[Change]:
    yield from now.revoked_identities.values()
    yield from now.revoked_serials.values()
    yield from now.withdrawn_issuers.values()
    for identity, posture in now.postures.items():
        yield PostureChanged(now.postures_number, identity, posture, attested_until[identity])
    for record in now.inventory.values():
        yield IdentityChanged(now.inventory_number, record)
    if heartbeat_at:
        yield Heartbeat(heartbeat_at, now.numbers)

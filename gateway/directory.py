"""Who is who, as this process's snapshot knows it: for API listeners."""

from __future__ import annotations

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord, State
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore


class SnapshotDirectory:
    """Implements `foundation.ports.IdentityDirectory` over the current snapshot."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    async def standing(self, identity: SpiffeId, serial: str) -> IdentityRecord:
        """The record of `identity`, when it and its certificate may be used now. Raises `Fault`."""
        snapshot = self._store.current
        record = snapshot.inventory.get(identity)
        if snapshot.is_revoked(identity, serial):
            raise Fault(Reason.IDENTITY_REVOKED)
        if record is None or record.state is State.EXPECTED:
            raise Fault(Reason.IDENTITY_UNKNOWN)
        if record.state is State.QUARANTINED:
            raise Fault(Reason.IDENTITY_QUARANTINED)
        if record.state is not State.ACTIVE:
            raise Fault(Reason.IDENTITY_REVOKED)
        return record

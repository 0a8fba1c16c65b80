"""Who is who, as this process's snapshot knows it: for API listeners."""

from __future__ import annotations

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from gateway.standing import NO_POSTURE, refusal_by_standing, standing_of
from policies.model import FOREVER


class SnapshotDirectory:
    """Implements `foundation.ports.IdentityDirectory` over the current snapshot."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    async def standing(self, identity: SpiffeId, serial: str) -> IdentityRecord:
        """The record of `identity`, when it and its certificate may be used now. Raises `Fault`."""
        known = standing_of(self._store.current, identity, serial)
        # Whether its certificate is valid was TLS's to say; whether it passed attestation is the authorizer's.
        refusal = refusal_by_standing(known._replace(posture=NO_POSTURE), -FOREVER, FOREVER, 0.0)
        if refusal is not None or known.record is None:
            raise Fault(refusal or Reason.IDENTITY_UNKNOWN)
        return known.record

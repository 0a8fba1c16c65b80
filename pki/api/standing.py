"""The authority's word on who may use which certificate now: `foundation.ports.IdentityDirectory` over its own books.

It also notes which certificates are in use (`pki.enrol.use`).
"""

from __future__ import annotations

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord, State
from foundation.reasons import Reason
from pki.authority import Authority
from pki.enrol.use import CertificateUse
from pki.entries import Entry

_REFUSED = {
    State.EXPECTED: Reason.IDENTITY_UNKNOWN,
    State.QUARANTINED: Reason.IDENTITY_QUARANTINED,
    State.REVOKED: Reason.IDENTITY_REVOKED,
}


class Standing:
    """Implements `foundation.ports.IdentityDirectory`."""

    def __init__(self, authority: Authority, use: CertificateUse) -> None:
        self._authority = authority
        self._use = use

    async def standing(self, identity: SpiffeId, serial: str) -> IdentityRecord:
        """See `foundation.ports.IdentityDirectory.standing`."""
        entry = await self._entry(identity)
        if entry.record.state in _REFUSED:
            raise Fault(_REFUSED[entry.record.state])
        if await self._authority.revocations.is_revoked(identity, serial):
            raise Fault(Reason.IDENTITY_REVOKED, "the certificate is revoked")
        if serial == entry.current_serial:
            await self._use.note(serial)
        return entry.record

    async def _entry(self, identity: SpiffeId) -> Entry:
        try:
            return await self._authority.inventory.get(identity)
        except Fault as fault:
            if fault.reason is Reason.INVENTORY_UNKNOWN:
                raise Fault(Reason.IDENTITY_UNKNOWN) from fault
            raise

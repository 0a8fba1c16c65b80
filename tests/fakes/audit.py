"""An audit log in memory, which can be told to fail."""

from __future__ import annotations

from foundation.faults import Fault
from foundation.ports import AuditEvent
from foundation.reasons import Reason


class MemoryAuditLog:
    """Implements `foundation.ports.AuditLog`. With `broken` set it refuses every event, as a full disk would."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.broken = False

    async def append(self, event: AuditEvent) -> int:
        if self.broken:
            raise Fault(Reason.AUDIT_FAILED)
        self.events.append(event)
        return len(self.events) - 1

    def kinds(self) -> list[str]:
        """The kinds of all events, in order."""
        return [event.kind for event in self.events]

"""Where a message came from, and what its sender may be told when it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.ports import AuditEvent, AuditLog
from foundation.reasons import Reason
from pki.enrol.rate import RateTable

AUDITED_REFUSALS_PER_MINUTE = 600

# What is judged without knowing anything of ours, or is no judgement at all: everybody may be told.
_OPEN = frozenset(
    {
        Reason.MESSAGE_TOO_LARGE,
        Reason.MESSAGE_MALFORMED,
        Reason.TOKEN_MALFORMED,
        Reason.ENROLMENT_RATE_LIMITED,
        Reason.SESSION_UNKNOWN,
        Reason.SERVER_KEY_CHANGED,
        Reason.STORAGE_FAILED,
        Reason.AUDIT_FAILED,
        Reason.SIGNER_FAILED,
        Reason.SERIAL_CONFLICT,
        Reason.CONFLICT,
        Reason.OVERLOADED,
        Reason.HOT_STATE_UNAVAILABLE,
        Reason.HOT_STATE_UNSAFE,
    }
)


@dataclass(frozen=True, slots=True)
class Origin:
    """`address` is the sender's IP address, `server_spki_sha256` the key that our side of the connection shows."""

    address: str
    server_spki_sha256: bytes


class Refusals:
    """Puts every refusal on record with its exact reason, and tells strangers one reason for all.

    How many records strangers can cause is bounded: beyond that they are counted, and the next record says how many.
    """

    def __init__(self, audit: AuditLog, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._budget = RateTable(AUDITED_REFUSALS_PER_MINUTE, AUDITED_REFUSALS_PER_MINUTE, most=1)
        self._unrecorded = 0

    async def outward(self, fault: Fault, kind: str, origin: Origin, subject: str, *, known: bool) -> Fault:
        """What goes out for `fault`, after it was recorded. `known` says that the sender has proven a token or the
        TPM of an inventory entry."""
        if known or self._budget.take("", self._clock.monotonic()):
            await self._record(fault, kind, origin, subject)
        else:
            self._unrecorded += 1
        if known or fault.reason in _OPEN:
            return fault
        return Fault(Reason.ENROLMENT_REFUSED)

    async def _record(self, fault: Fault, kind: str, origin: Origin, subject: str) -> None:
        detail = {"address": origin.address, "detail": fault.detail, "field": fault.field, "internal": fault.internal}
        unrecorded, self._unrecorded = self._unrecorded, 0
        if unrecorded:
            detail["unrecorded"] = str(unrecorded)
        said = {name: text for name, text in detail.items() if text}
        await self._audit.append(AuditEvent(kind, origin.address or "local", subject, fault.reason.code, said))

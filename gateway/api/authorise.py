"""Who may call an API route: asked of the same policy engine as every other request.

The machine's root, over the Unix socket, is let in by fixed rule, for somebody must be able to mend a policy that
denies everybody; what it changes is on the audit log before it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identity import IdentityRecord, State
from foundation.ports import AuditEvent, AuditLog, Caller
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from gateway.standing import refusal_by_standing, standing_of
from policies.model import FOREVER, CanonicalRequest, Decision, Denial, Query, Staleness, judge

PROVES = "attest"
"""The route by which a node shows anew what it is: a posture that failed does not close it, else nobody whose failure
an operator has cleared could come back. The authority refuses there whoever's failure still stands."""
_ACTIONS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class PolicyAuthorizer:
    """Implements `foundation.ports.ApiAuthorizer`."""

    def __init__(
        self,
        store: SnapshotStore,
        clock: Clock,
        audit: AuditLog,
        decision_id: Callable[[], str],
        record: Callable[[Decision], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._audit = audit
        self._decision_id = decision_id
        self._record = record

    async def authorise(self, caller: Caller, route: str, method: str) -> str:
        """The decision's id, or `Fault` with the denial's reason."""
        if caller.via == "socket":
            return await self._authorise_root(caller, route, method)
        decision = await self._decide(caller, route, method)
        self._record(decision)
        if isinstance(decision, Denial):
            raise Fault(decision.reason, f"decision {decision.id}")
        return decision.id

    async def _authorise_root(self, caller: Caller, route: str, method: str) -> str:
        decision = self._decision_id()
        if _ACTIONS.get(method) != "get":
            await self._audit.append(AuditEvent("root.acted", str(caller.id), f"api.{route}", detail={"id": decision}))
        return decision

    async def _decide(self, caller: Caller, route: str, method: str) -> Decision:
        snapshot, now = self._store.current, self._clock.now()
        known = standing_of(snapshot, caller.id, caller.serial, caller.issuer)
        record = _record_of(known.record, caller)
        request = CanonicalRequest(method, _ACTIONS.get(method, "unknown"), "", (), (), "", b"")
        query = Query(int(now), record, known.posture, f"api.{route}", request, Staleness.FRESH)
        refusal = refusal_by_standing(known._replace(record=record), -FOREVER, caller.not_after, now)
        if refusal is Reason.POSTURE_FAILED and route == PROVES:
            refusal = None
        if refusal is not None or snapshot.policy is None:
            return Denial(self._decision_id(), query, (refusal or Reason.REVISION_MISSING,), snapshot.numbers)
        answer = await snapshot.policy.engine.decide(query)
        return judge(self._decision_id(), query, answer, FOREVER, snapshot.numbers)


def _record_of(record: IdentityRecord | None, caller: Caller) -> IdentityRecord:
    """The caller's record. The inventory's word stands; a JWT narrows or gives roles by its own claim, for its issuer
    answers for them."""
    if caller.via == "jwt":
        return replace(record or IdentityRecord(caller.id, State.ACTIVE, 0), roles=caller.roles)
    return record or IdentityRecord(caller.id, State.EXPECTED, 0)

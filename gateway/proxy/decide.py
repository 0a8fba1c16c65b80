"""The decision on one request: fixed rules, then policy, then a re-check that nothing changed meanwhile.

Steps, in this order; the first refusal stands:
 1. a policy revision is loaded
 2. the identity and its certificate are not revoked
 3. the certificate is valid now
 4. the identity is known, active and not in quarantine
 5. its last attestation did not fail, and is not over
 6. policy answers, from the cache or the engine, against the pinned snapshot
 7. nothing that touches this exchange changed since it registered; otherwise again, three times at most
 8. obligations that keep state (rates) are met

Of a brokered stream, steps 2 to 5 are taken for its target too, and policy sees both.

What runs already is asked about again when something that touches it changed, and at its deadline, by steps 1 to 6.
Then the present revision must also lead the request where it went: over the same route, to the same upstream.

Steps 1 to 5 rest on no policy: no revision of it, and no break-glass, can leave them out. Steps 2 to 4, and the verdict
of step 5, are `gateway.standing`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identity import AttestationClass, Posture
from foundation.reasons import Reason
from gateway.proxy import grounds
from gateway.proxy.identify import Peer
from gateway.proxy.oblige import Obligations
from gateway.snapshot import Snapshot, SnapshotStore
from gateway.standing import Standing, refusal_by_standing, standing_of
from gateway.streams.registry import Exchange
from policies.engine import PolicyEngine
from policies.model import FOREVER, CanonicalRequest, Decision, Denial, Query, judge
from policies.routes import Route
from policies.staleness import StalenessSettings, staleness

MAX_TRIES = 3
NO_FACTS: Mapping[str, Any] = MappingProxyType({})

Question = tuple[PolicyEngine, Query, float]
"""Whom to ask what, and the nearest deadline of trust."""


class Shadow(Protocol):
    """Whoever asks another policy the same (`gateway.shadow.tap`)."""

    def offer(self, decision: Decision) -> None:
        """Raises nothing, waits for nothing."""
        ...


class Decider:
    """Decides against the store's current snapshot. Holds no state of a request: what it remembers is what the snapshot
    says of each peer, for as long as that snapshot is the current one and the peer's connection is there."""

    def __init__(
        self,
        store: SnapshotStore,
        clock: Clock,
        staleness_settings: StalenessSettings,
        obligations: Obligations,
        decision_id: Callable[[], str],
        shadow: Shadow | None = None,
    ) -> None:
        """`shadow` is offered what policy decided."""
        self._shadow = shadow
        self._store = store
        self._clock = clock
        self._staleness = staleness_settings
        self._obligations = obligations
        self._decision_id = decision_id
        self._snapshot = store.current
        self._standings: WeakKeyDictionary[Peer, Standing] = WeakKeyDictionary()

    def decide_now(self, peer: Peer, request: CanonicalRequest, route: Route, exchange: Exchange) -> Decision | None:
        """The decision when it needs no waiting: a refusal by fixed rule, or policy's answer from the cache. None when
        the engine must be asked. Between call and return nothing else runs, so there is nothing to re-check."""
        snapshot = self._store.current
        question = self._question(snapshot, exchange, peer, request, route)
        if isinstance(question, Denial):
            return question
        engine, query, deadline = question
        answer = engine.decide_now(query)
        if answer is None:
            return None
        decision = judge(self._decision_id(), query, answer, deadline, snapshot.numbers)
        return self._conclude(decision, route, exchange)

    async def decide(self, peer: Peer, request: CanonicalRequest, route: Route, exchange: Exchange) -> Decision:
        """The decision on `request`, whose `exchange` is registered. Raises nothing but cancellation."""
        settled = await self._settle(exchange, self._question, exchange, peer, request, route)
        return self._conclude(settled, route, exchange)

    def refuse(self, reason: Reason, facts: Mapping[str, Any] = NO_FACTS) -> Denial:
        """A denial of what never became a question, such as a request that matches no route."""
        return Denial(self._decision_id(), None, (reason,), self._store.current.numbers, facts=facts)

    def _conclude(self, decision: Decision, route: Route, exchange: Exchange) -> Decision:
        if self._shadow is not None and decision.input is not None:
            self._shadow.offer(decision)
        if isinstance(decision, Denial):
            return decision
        unmet = self._obligations.unmet(decision)
        if unmet is not None:
            facts = grounds.unmet(decision)
            return Denial(decision.id, decision.query, (unmet,), decision.numbers, decision.input, facts)
        exchange.permitted(decision, route)
        return decision

    # --- once more, on what runs already (`gateway.streams.redecide.Redecider`) ---------------------

    def again_now(self, exchange: Exchange) -> Decision | None:
        """As `decide_now`, for an exchange that was permitted."""
        snapshot = self._store.current
        question = self._question_again(snapshot, exchange)
        if isinstance(question, Denial):
            return question
        engine, query, deadline = question
        answer = engine.decide_now(query)
        return None if answer is None else judge(self._decision_id(), query, answer, deadline, snapshot.numbers)

    async def again(self, exchange: Exchange) -> Decision:
        """As `decide`, for an exchange that was permitted. Raises nothing but cancellation."""
        return await self._settle(exchange, self._question_again, exchange)

    def _question_again(self, snapshot: Snapshot, exchange: Exchange) -> Question | Denial:
        permit, route = exchange.permit, exchange.route
        if permit is None or route is None:
            return self.refuse(Reason.INTERNAL)
        request = permit.query.request
        until = self._store.renewals.until(exchange.peer, snapshot.revoked_serials)
        question = self._question(snapshot, exchange, exchange.peer, request, route, until)
        astray = None if isinstance(question, Denial) else _astray(snapshot, exchange, permit.query, route)
        if isinstance(question, Denial) or astray is None:
            return question
        return Denial(self._decision_id(), question[1], (astray,), snapshot.numbers)

    # --- one question ---------------------------------------------------------------------------------

    async def _settle(self, exchange: Exchange, ask: Callable[..., Question | Denial], *about: Any) -> Decision:
        for _ in range(MAX_TRIES):
            snapshot, generation = self._store.current, exchange.generation
            question = ask(snapshot, *about)
            if isinstance(question, Denial):
                return question
            engine, query, deadline = question
            answer = await engine.decide(query)
            if exchange.generation == generation:
                return judge(self._decision_id(), query, answer, deadline, snapshot.numbers)
        return self.refuse(Reason.DECISION_UNSTABLE)

    def _question(
        self,
        snapshot: Snapshot,
        exchange: Exchange,
        peer: Peer,
        request: CanonicalRequest,
        route: Route,
        certified_until: float = 0.0,
    ) -> Question | Denial:
        """`certified_until` is given where that is not the end of the peer's own certificate."""
        now, not_after = self._clock.now(), certified_until or peer.not_after
        standing = self._standing(snapshot, peer)
        record, posture, _ = standing
        attested_until = self._attested_until(peer, posture)
        age, next_age = staleness(self._store.heartbeat_at, now, self._staleness)
        query = None if record is None else Query(int(now), record, posture, route.name, request, age)
        refusal = refusal_by_fixed_rule(snapshot, standing, peer.not_before, not_after, attested_until, now)
        if refusal is not None or query is None or snapshot.policy is None:
            reason = refusal or Reason.IDENTITY_UNKNOWN
            facts = grounds.grounds(reason, snapshot, peer, posture, attested_until)
            return Denial(self._decision_id(), query, (reason,), snapshot.numbers, facts=facts)
        deadline = min(not_after, attested_until, next_age, now + snapshot.policy.asked_every)
        if exchange.target is None:
            return snapshot.policy.engine, query, deadline
        return self._question_of_both(snapshot, snapshot.policy.engine, query, exchange.target, deadline)

    def _question_of_both(
        self, snapshot: Snapshot, engine: PolicyEngine, query: Query, target: Peer, deadline: float
    ) -> Question | Denial:
        """The same with what is known of the `target` of a brokered stream."""
        now, not_after = self._clock.now(), self._store.renewals.until(target, snapshot.revoked_serials)
        standing = self._standing(snapshot, target)
        record, posture, _ = standing
        attested_until = self._attested_until(target, posture)
        refusal = refusal_by_fixed_rule(snapshot, standing, target.not_before, not_after, attested_until, now)
        both = query._replace(target=record, target_posture=posture)
        if refusal is None and record is not None:
            return engine, both, min(deadline, not_after, attested_until)
        reason = refusal or Reason.IDENTITY_UNKNOWN
        facts = {
            "target": str(target.id),
            "target_reason": reason.code,
            **grounds.grounds(reason, snapshot, target, posture, attested_until),
        }
        reasons = (Reason.TARGET_UNTRUSTED, reason)
        return Denial(self._decision_id(), both if record else query, reasons, snapshot.numbers, facts=facts)

    def _attested_until(self, peer: Peer, posture: Posture) -> float:
        return FOREVER if posture.attestation is AttestationClass.NONE else self._store.attested_until(peer.id)

    def _standing(self, snapshot: Snapshot, peer: Peer) -> Standing:
        """What `snapshot` says of `peer`, found once."""
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._standings.clear()
        standing = self._standings.get(peer)
        if standing is None:
            standing = self._standings[peer] = standing_of(snapshot, peer.id, peer.serial, peer.issuer)
        return standing


def _astray(snapshot: Snapshot, exchange: Exchange, query: Query, route: Route) -> Reason | None:
    """Why the present revision does not lead `exchange` where it went."""
    if snapshot.policy is None:
        return Reason.REVISION_MISSING
    try:
        now = snapshot.policy.routes.route_of(query)
    except Fault as fault:
        return fault.reason
    if query.target is not None:
        same = (now.service, now.protocol) == (route.service, route.protocol)
        return None if same else Reason.ROUTE_CHANGED
    request = query.request
    if now.name != route.name or (exchange.upstream is not None and exchange.upstream not in now.destinations):
        return Reason.ROUTE_CHANGED
    return Reason.UPGRADE_REFUSED if request.upgrade and request.upgrade not in now.upgrades else None


def refusal_by_fixed_rule(
    snapshot: Snapshot, standing: Standing, not_before: float, not_after: float, attested_until: float, now: float
) -> Reason | None:
    """Steps 1 to 5: why nothing at all may be done at `now`, or None. The certificate is valid from `not_before` until
    `not_after`; all in seconds since the Unix epoch."""
    if snapshot.policy is None:  # 1
        return Reason.REVISION_MISSING
    refusal = refusal_by_standing(standing, not_before, not_after, now)  # 2 to 5
    if refusal is None and now >= attested_until:  # 5
        return Reason.ATTESTATION_EXPIRED
    return refusal

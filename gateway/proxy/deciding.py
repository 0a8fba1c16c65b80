"""What every exchange goes through before anything is done for it: decide, put on record, see that it still stands.

The exchange has registered before. A change that touches it between decision and record has it decided again,
`MAX_TRIES` times at most; what is recorded is what is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.identify import Caller, Peer
from gateway.proxy.record import entry_of
from gateway.proxy.route import RouteTable
from gateway.proxy.services import ConnectionServices
from gateway.streams.registry import Exchange
from policies.model import CanonicalRequest, Decision, Denial, Permit
from policies.routes import Route

MAX_TRIES = 3
_LOG = logging.getLogger(__name__)


class Deciding:
    """The part of an exchange that decides. `over` says that nothing more is done for it."""

    __slots__ = (
        "_caller",
        "_decided_at_generation",
        "_decision",
        "_guard",
        "_request",
        "_route",
        "_services",
        "_tries",
        "_waiting",
        "over",
    )

    def __init__(
        self,
        services: ConnectionServices,
        caller: Caller,
        request: CanonicalRequest,
        route: Route,
        cut: Callable[[Reason], None],
        target: Peer | None = None,
    ) -> None:
        """`cut` ends it, whatever it is doing; `target` is the node at a stream's other end."""
        self._services = services
        self._caller = caller
        self._request = request
        self._route = route
        self._guard = Exchange(caller.peer, cut, target)
        self._decision: Decision | None = None
        self._waiting: asyncio.Task[None] | None = None  # for the engine
        self._tries = 0
        self._decided_at_generation = 0
        self.over = False

    # --- what each kind of exchange does in its own way -------------------------------------------------

    def refuse(self, fault: Fault) -> None:
        """Tell the caller, and end."""
        raise NotImplementedError

    def _forward(self, permit: Permit) -> None:
        """It is permitted, on record, and still stands: do it."""
        raise NotImplementedError

    def _named(self) -> tuple[bytes, bytes]:
        """Method and target, for the record."""
        raise NotImplementedError

    def _route_in(self, table: RouteTable) -> Route:
        """The route that it takes by this table. Raises `Fault`."""
        raise NotImplementedError

    # --- decide and record --------------------------------------------------------------------------------

    @property
    def decided(self) -> bool:
        return self._decision is not None

    def _decide(self) -> None:
        self._tries += 1
        self._decided_at_generation = self._guard.generation
        decider = self._services.decider
        decision = decider.decide_now(self._caller.peer, self._request, self._route, self._guard)
        if decision is None:
            self._waiting = asyncio.get_running_loop().create_task(self._ask())
        else:
            self._record(decision)

    async def _ask(self) -> None:
        decider = self._services.decider
        try:
            decision = await decider.decide(self._caller.peer, self._request, self._route, self._guard)
        except Exception:
            _LOG.exception("a decision failed: it is a denial")
            decision = decider.refuse(Reason.INTERNAL)
        self._waiting = None
        if self._guard.generation == self._decided_at_generation:
            self._record(decision)
        else:
            self._decide_anew()

    def _record(self, decision: Decision) -> None:
        self._decision = decision
        method, target = self._named()
        entry = entry_of(decision, self._caller.text, method, target, self._route, self._services.clock.now())
        self._services.records.before(entry, self._recorded)

    def _recorded(self, fault: Fault | None) -> None:
        decision = self._decision
        if self.over or decision is None:
            return
        if fault is not None:
            self.refuse(fault)
        elif isinstance(decision, Denial):
            self.refuse(Fault(decision.reason))
        elif self._still_stands():
            self._forward(decision)

    def _still_stands(self) -> bool:
        """Whether nothing touched this exchange since its decision; otherwise it is decided again."""
        if self._guard.generation == self._decided_at_generation:
            return True
        self._decide_anew()
        return False

    def _decide_anew(self) -> None:
        """Something that touches it changed, the way that it takes perhaps."""
        if self._tries >= MAX_TRIES:
            self.refuse(Fault(Reason.DECISION_UNSTABLE))
            return
        table = self._services.routes()
        try:
            if table is None:
                raise Fault(Reason.REVISION_MISSING)
            self._route = self._route_in(table)
        except Fault as fault:
            self._record(self._services.decider.refuse(fault.reason))
        else:
            self._decide()

    # --- what others say of it ------------------------------------------------------------------------------

    def _decision_id(self) -> str:
        return self._decision.id if self._decision is not None else ""

    def _reason(self) -> Reason:
        return self._decision.reasons[0] if self._decision is not None else Reason.INTERNAL

    def _leave(self) -> None:
        """With the last byte, however it ended."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._services.registry.leave(self._guard)

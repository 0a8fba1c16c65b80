"""Every decision goes on record, and the record is with the kernel before anything follows from it.

What follows (an answer, a byte upstream) waits for the end of the event loop's turn: the decisions of one turn are
written once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from foundation.faults import Fault
from foundation.ports import DecisionEntry, DecisionRecorder
from policies.model import Decision, Denial
from policies.routes import Route, RouteClass

Then = Callable[[Fault | None], None]
_LOG = logging.getLogger(__name__)


class Records:
    """Puts decisions on record, then lets what they decide happen."""

    def __init__(self, recorder: DecisionRecorder) -> None:
        self._recorder = recorder
        self._waiting: list[tuple[DecisionEntry, Then]] = []

    def before(self, entry: DecisionEntry, then: Then) -> None:
        """Call `then` once `entry` is with the kernel; with a fault (`DECISION_UNRECORDED`) when it is not and must
        be."""
        self._recorder.record(entry)
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append((entry, then))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for entry, then in waiting:
            try:
                self._recorder.flush(entry)
            except Fault as fault:
                _follow(then, fault)
            else:
                _follow(then, None)


def _follow(then: Then, fault: Fault | None) -> None:
    try:
        then(fault)
    except Exception:
        _LOG.exception("what should follow a decision failed; the others of this turn go on")


def entry_of(
    decision: Decision, identity: str, method: bytes, target: bytes, route: Route | None, at: float
) -> DecisionEntry:
    """The entry that says what was decided on whose request. `at` is seconds since the Unix epoch."""
    denied, asked = isinstance(decision, Denial), decision.input
    return DecisionEntry(
        id=decision.id,
        at=at,
        allow=not denied,
        reasons=tuple([reason.code for reason in decision.reasons]),
        identity=identity,
        route=route.name if route is not None else "",
        method=method.decode("latin-1"),
        target=target.decode("latin-1"),
        grant="" if isinstance(decision, Denial) else decision.grant,
        numbers=decision.numbers,
        critical=route is not None and route.route_class is RouteClass.CRITICAL,
        input=None if asked is None else asked.document,
        input_key=b"" if asked is None else asked.key,
        facts=decision.facts if isinstance(decision, Denial) else None,
    )

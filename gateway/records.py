"""Entries for decisions that carry their own question: on an API's caller, and on a stream that was cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from foundation.clock import Clock
from foundation.ports import DecisionEntry, DecisionRecorder
from gateway.streams.registry import Cut
from policies.model import Decision, Denial, Query


def recording(recorder: DecisionRecorder, clock: Clock) -> Callable[[Decision], None]:
    """A function that puts a decision on record, with the end of this turn of the event loop."""
    return lambda decision: recorder.record(entry_of(decision, clock.now()))


def recording_cuts(recorder: DecisionRecorder, clock: Clock) -> Callable[[Cut], None]:
    """A function that puts on record what ended a stream, and which."""

    def record(cut: Cut) -> None:
        because = replace(cut.because, facts={**cut.because.facts, "cut_for": cut.reason.code})
        entry = entry_of(because, clock.now())
        entry.cut = cut.permit
        recorder.record(entry)

    return record


def entry_of(decision: Decision, at: float) -> DecisionEntry:
    """`at` is seconds since the Unix epoch."""
    query, asked = decision.query, decision.input
    return DecisionEntry(
        id=decision.id,
        at=at,
        allow=not isinstance(decision, Denial),
        reasons=tuple(reason.code for reason in decision.reasons),
        identity=str(query.identity.id) if query else "",
        route=query.route if query else "",
        method=query.request.method if query else "",
        target=_target(query),
        grant="" if isinstance(decision, Denial) else decision.grant,
        numbers=decision.numbers,
        input=None if asked is None else asked.document,
        input_key=b"" if asked is None else asked.key,
        facts=decision.facts if isinstance(decision, Denial) else None,
    )


def _target(query: Query | None) -> str:
    return query.request.target.decode("latin-1") if query else ""

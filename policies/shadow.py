"""A second policy beside the one in force: the same questions, and how its answers differ. Pure values.

What is compared is what follows for who asks: permit or denial, the reasons, the grant and what it obliges to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from foundation.reasons import Reason
from policies.cache import ERRORS
from policies.model import Answer, Decision, Denial, Query

MAX_SAMPLE_BYTES = 64 << 10
MAX_ROWS = 2000  # of routes and kinds
MAX_KEPT = 1000  # differences kept as records
MAX_KEPT_ALIKE = 20  # of one route and kind
OTHERS = "(others)"


class Difference(StrEnum):
    """How a candidate's answer differs."""

    NOW_DENIED = "now_denied"
    NOW_PERMITTED = "now_permitted"
    OTHER_REASON = "other_reason"
    OTHER_GRANT = "other_grant"
    OTHER_OBLIGATIONS = "other_obligations"
    FAILED = "failed"


class Verdict(NamedTuple):
    """What follows from an answer."""

    allow: bool
    reasons: tuple[str, ...]
    grant: str
    obligations: tuple[str, ...]


class Sample(NamedTuple):
    """One decision as it was made. `seen` counts the decisions since the sample before, `dropped` the samples that
    found no room."""

    id: str
    route: str
    verdict: Verdict
    input: Mapping[str, Any]
    seen: int
    dropped: int


def sample_of(decision: Decision, query: Query, seen: int, dropped: int) -> bytes:
    """The sample of a decision by policy, as one JSON object."""
    denied = isinstance(decision, Denial)
    document = {
        "id": decision.id,
        "allow": not denied,
        "reasons": [reason.code for reason in decision.reasons],
        "grant": "" if isinstance(decision, Denial) else decision.grant,
        "obligations": [] if isinstance(decision, Denial) else [_spelled(each) for each in decision.obligations],
        "input": query.to_input(),
        "seen": seen,
        "dropped": dropped,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse_sample(raw: bytes) -> Sample:
    """Raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    found = json.loads(raw)
    asked, obligations = found["input"], tuple(map(str, found["obligations"]))
    verdict = Verdict(bool(found["allow"]), tuple(found["reasons"]), str(found["grant"]), obligations)
    return Sample(str(found["id"]), str(asked["route"]), verdict, asked, int(found["seen"]), int(found["dropped"]))


def verdict_of(answer: Answer, now: float) -> Verdict:
    """What follows from `answer` at `now`; as `policies.model.judge` has it."""
    if answer.allow and answer.deadline <= now:
        return Verdict(False, (Reason.GRANT_EXPIRED.code,), "", ())
    reasons = tuple(reason.code for reason in answer.reasons)
    obligations = tuple(_spelled(each) for each in answer.obligations) if answer.allow else ()
    return Verdict(answer.allow, reasons, answer.grant if answer.allow else "", obligations)


def difference(before: Verdict, after: Verdict) -> Difference | None:
    """How `after` differs, by what matters most; None when nothing does."""
    if before == after:
        return None
    if not ERRORS.isdisjoint(Reason.from_code(code) for code in after.reasons):
        return Difference.FAILED
    if before.allow is not after.allow:
        return Difference.NOW_DENIED if before.allow else Difference.NOW_PERMITTED
    if before.reasons != after.reasons:
        return Difference.OTHER_REASON
    return Difference.OTHER_GRANT if before.grant != after.grant else Difference.OTHER_OBLIGATIONS


@dataclass(slots=True)
class Tally:
    """What was found so far. `seen` counts decisions, of which `compared` were put to the candidate; `dropped` were to
    be, but there was no room for them. `kept` are differences as records, bounded in all and of each kind."""

    seen: int = 0
    compared: int = 0
    dropped: int = 0
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    kept: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, sample: Sample, after: Verdict) -> Mapping[str, Any] | None:
        """Count; the record of the difference when it is one to be kept."""
        self.seen += sample.seen
        self.dropped += sample.dropped
        self.compared += 1
        kind = difference(sample.verdict, after)
        if kind is None:
            return None
        row = (sample.route, kind.value)
        if row not in self.counts and len(self.counts) >= MAX_ROWS:
            row = (OTHERS, kind.value)
        self.counts[row] = self.counts.get(row, 0) + 1
        if self.counts[row] > MAX_KEPT_ALIKE or len(self.kept) >= MAX_KEPT:
            return None
        record = _record(sample, kind, after)
        self.kept.append(record)
        return record

    def to_json(self) -> dict[str, Any]:
        rows = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return {
            "seen": self.seen,
            "compared": self.compared,
            "dropped": self.dropped,
            "different": sum(self.counts.values()),
            "differences": [{"route": route, "kind": kind, "count": count} for (route, kind), count in rows],
        }


def _record(sample: Sample, kind: Difference, after: Verdict) -> Mapping[str, Any]:
    return {
        "decision": sample.id,
        "route": sample.route,
        "kind": kind.value,
        "before": sample.verdict._asdict(),
        "after": after._asdict(),
    }


def _spelled(obligation: Any) -> str:
    return json.dumps([obligation.kind, dict(obligation.parameters)], sort_keys=True)

"""Why a decision fell as it did, for people: what failed, which grants came near, and what to do.

Made of two documents: the decision as recorded, and what the `explain` entrypoint (policies/rego/explain.rego) says
of the same input. Pure: takes values, returns values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from foundation.faults import Fault
from foundation.reasons import Reason

# Fact that a requirement compares → the sentence about it. `found` and `needs` are filled in.
_FACTS = {
    "identity.kind": "the caller is a {found}; the route takes {needs}",
    "identity.verdict": "the caller's last attestation {found}",
    "identity.attestation": "the caller's attestation is of class {found}; the route asks for {needs}",
    "identity.tier": "the caller is of tier {found}; the route takes {needs}",
    "identity.segment": "the caller is in segment {found}; the route takes {needs}",
    "target.verdict": "the target's last attestation {found}",
    "target.attestation": "the target's attestation is of class {found}; the route asks for {needs}",
    "target.segment": "the target is in segment {found}; the caller's segment reaches {needs}",
    "staleness": "the gateway's facts are {found}; the route takes {needs}",
}
_MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A grant on the route that does not allow this. `lacks` says what is missing, a sentence each; `expires` is in
    seconds since the Unix epoch."""

    grant: str
    role: str
    expires: int
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision, explained. `at` is in seconds since the Unix epoch; `revision` is the policy's."""

    decision: str
    allowed: bool
    at: float
    who: str
    what: str
    route: str
    revision: int
    grant: str
    reasons: tuple[Reason, ...]
    sentences: tuple[str, ...]
    remedies: tuple[str, ...]
    near_misses: tuple[NearMiss, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; reasons as codes."""
        return asdict(self) | {"reasons": [reason.code for reason in self.reasons]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Explanation:
        """What `to_json` gave. Raises `KeyError`, `TypeError` or `ValueError` when it is not one."""
        near = tuple(NearMiss(**(miss | {"lacks": tuple(miss["lacks"])})) for miss in document["near_misses"])
        reasons = tuple(Reason.from_code(code) for code in document["reasons"])
        texts = {name: tuple(document[name]) for name in ("sentences", "remedies")}
        return cls(**{**document, **texts, "reasons": reasons, "near_misses": near})


def explanation(record: Mapping[str, Any], document: Mapping[str, Any] | None = None) -> Explanation:
    """The explanation of the decision `record` (a line of the decision log: `id`, `at`, `allow`, `reasons`, `identity`,
    `route`, `method`, `target`, `grant`, `numbers`, perhaps `input`).

    document: the answer of the `explain` entrypoint to the recorded input; None when policy was not asked, or its input
    was not kept. Raises `Fault(ENGINE_ANSWER_INVALID)` when it is not one.
    """
    reasons = tuple(Reason.from_code(code) for code in record["reasons"])
    read = _Reader(record, document or {})
    try:
        sentences, near = read.sentences(reasons), read.near_misses()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Fault(Reason.ENGINE_ANSWER_INVALID, "not an explanation by policies/rego/explain.rego") from error
    return Explanation(
        decision=record["id"],
        allowed=record["allow"],
        at=record["at"],
        who=record["identity"],
        what=f"{record['method']} {record['target']}".strip(),
        route=record["route"],
        revision=record["numbers"][0],
        grant=record.get("grant", ""),
        reasons=reasons,
        sentences=tuple(text[:_MAX_TEXT] for text in sentences),
        remedies=() if record["allow"] else tuple(dict.fromkeys(reason.remedy for reason in reasons)),
        near_misses=() if record["allow"] else near,
    )


class _Reader:
    """Turns the two documents into sentences."""

    def __init__(self, record: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        self._record = record
        self._document = document
        self._input: Mapping[str, Any] = record.get("input") or {}

    def sentences(self, reasons: tuple[Reason, ...]) -> list[str]:
        texts = [reason.meaning for reason in reasons]
        texts += [_fact(item) for item in self._document.get("failed", ())]
        texts += [_deny(item) for item in self._document.get("denies", ())]
        roles = self._document.get("roles_that_may", ())
        if roles and not self._record["allow"]:
            texts.append(f"roles that may call this: {', '.join(roles)}")
        return texts + self._changed()

    def near_misses(self) -> tuple[NearMiss, ...]:
        return tuple(self._near_miss(item) for item in self._document.get("near_misses", ()))

    def _near_miss(self, item: Mapping[str, Any]) -> NearMiss:
        lacks = tuple(_LACKS[thing](item, self._input) for thing in item["lacks"])
        return NearMiss(item["grant"], item["role"], int(item["expires"]), lacks)

    def _changed(self) -> list[str]:
        """A word on it when the policy that explains is not of the mind of the one that decided."""
        decided = self._document.get("decision")
        if decided is None or tuple(decided["reasons"]) == tuple(self._record["reasons"]):
            return []
        return [f"the policy in force now would answer otherwise: {', '.join(decided['reasons'])}"]


def _fact(item: Mapping[str, Any]) -> str:
    needs = ", ".join(str(need) for need in item["needs"]) or "none"
    return _FACTS[item["fact"]].format(found=str(item["found"]) or "(none)", needs=needs)


def _deny(item: Mapping[str, Any]) -> str:
    name = f"deny {item['id']}" if item["id"] else "an own rule of the security team"
    return f"{name}: {item['why']}"


def _role(item: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    return f"the caller does not hold the role {item['role']}"


def _path(item: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    covers = item["covers"]
    texts = [_path_text(path) for path in covers.get("paths", ())]
    texts += [_path_text([*p["segments"], *(["**"] if p["open"] else [])]) for p in covers.get("patterns", ())]
    return f"it covers {', '.join(texts)}"


def _path_text(segments: list[str]) -> str:
    return "/" + "/".join(segments)


def _method(item: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    upgrade = asked.get("request", {}).get("upgrade", "")
    note = f"; an upgrade to {upgrade} needs UPGRADE" if upgrade else ""
    return f"it covers {', '.join(item['covers']['methods'])}{note}"


def _site(item: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    found = asked.get("identity", {}).get("site", "") or "none"
    return f"it is for sites {', '.join(item['covers']['sites'])}; the caller's is {found}"


def _tier(item: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    return f"it is for tiers {', '.join(str(tier) for tier in item['covers']['tiers'])}"


def _time(item: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    return f"it ended at {datetime.fromtimestamp(item['expires'], UTC):%Y-%m-%dT%H:%M:%SZ}"


_LACKS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "role": _role,
    "path": _path,
    "method": _method,
    "site": _site,
    "tier": _tier,
    "time": _time,
}

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
    "target.to": "the target is in segment {found}; the route leads to {needs}",
    "staleness": "the facts that decided were {found}; the route takes {needs}",
}
# Facts of a refusal, and the sentence about them. The first one's presence decides.
_GROUNDS = (
    (("target", "target_reason"), "the target {0} may not be reached: {1}"),
    (("certificate_ended", "serial"), "certificate {1} ended at {0}"),
    (("certificate_begins", "serial"), "certificate {1} begins at {0}"),
    (("attestation_ended",), "the last attestation ended at {0}"),
    (("attestation",), "it attested with a TPM of class {0}"),
    (("revocation", "revoked_at", "revoked_for"), "revocation {0}, at {1}, for {2}"),
    (("state",), "the inventory has it as {0}"),
    (("grant_ended", "grant"), "grant {1} ended at {0}"),
    (("per_second", "grant"), "grant {1} allows {0} requests a second"),
    (("detail",), "{0}"),
)
_TIMES = frozenset({"certificate_ended", "certificate_begins", "attestation_ended", "revoked_at", "grant_ended"})
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
    """One decision, explained. `at` is in seconds since the Unix epoch; `revision` is the policy's that decided,
    `explained_by` the one that was asked why (0: none was). `cut` is the decision that ended the stream which ran by
    this one, and `ended` the one whose stream this one ended; empty where there is none. `node` is the node that by its
    own word decided itself, and `staleness` the class of its bundle's age; empty where a gateway decided."""

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
    explained_by: int = 0
    cut: str = ""
    ended: str = ""
    node: str = ""
    staleness: str = ""

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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What more than the record is known of a decision. `document` is the answer of the `explain` entrypoint of policy
    revision `revision` to what was kept of the question; None when policy was not asked then, or could not be now:
    `note` says why. `cut` is the record of the decision that ended the stream which ran by this one. `said` is what
    nodes say of it, a sentence each; `node` and `staleness` are as in `Explanation` (`policies.node_words`)."""

    document: Mapping[str, Any] | None = None
    revision: int = 0
    note: str = ""
    cut: Mapping[str, Any] | None = None
    said: tuple[str, ...] = ()
    node: str = ""
    staleness: str = ""


NOTHING_MORE = Evidence()


def explanation(record: Mapping[str, Any], evidence: Evidence = NOTHING_MORE) -> Explanation:
    """The explanation of the decision `record` (a line of the decision log: docs/records.md). Raises
    `Fault(ENGINE_ANSWER_INVALID)` when `evidence.document` is none of the `explain` entrypoint."""
    reasons = tuple(Reason.from_code(code) for code in record["reasons"])
    read = _Reader(record, evidence)
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
        explained_by=evidence.revision if evidence.document is not None else 0,
        cut=evidence.cut["id"] if evidence.cut is not None else "",
        ended=record.get("cut", ""),
        node=evidence.node,
        staleness=evidence.staleness,
    )


class _Reader:
    """Turns the two documents into sentences."""

    def __init__(self, record: Mapping[str, Any], evidence: Evidence) -> None:
        self._record = record
        self._evidence = evidence
        self._document = evidence.document or {}
        self._input: Mapping[str, Any] = record.get("input") or {}

    def sentences(self, reasons: tuple[Reason, ...]) -> list[str]:
        texts = [*(reason.meaning for reason in reasons), *self._evidence.said]
        texts += grounds(self._record.get("facts", {}))
        texts += [_fact(item) for item in self._document.get("failed", ())]
        texts += [_deny(item) for item in self._document.get("denies", ())]
        if not self._record["allow"]:
            texts += [f"grant {name} would allow it but for that" for name in self._document.get("covered_by", ())]
        texts += placed(self._document.get("segments", {}))
        roles = self._document.get("roles_that_may", ())
        if roles and not self._record["allow"]:
            texts.append(f"roles that may call this: {', '.join(roles)}")
        return [*texts, *self._streams(), *self._changed()]

    def near_misses(self) -> tuple[NearMiss, ...]:
        return tuple(self._near_miss(item) for item in self._document.get("near_misses", ()))

    def _near_miss(self, item: Mapping[str, Any]) -> NearMiss:
        lacks = tuple(_LACKS[thing](item, self._input) for thing in item["lacks"])
        return NearMiss(item["grant"], item["role"], int(item["expires"]), lacks)

    def _streams(self) -> list[str]:
        """What ended the stream that ran by this decision, or which stream this one ended."""
        cut, texts = self._evidence.cut, []
        if cut is not None:
            codes = [cut.get("facts", {}).get("cut_for", cut["reasons"][0]), *cut["reasons"]]
            why = dict.fromkeys(Reason.from_code(code).meaning for code in codes)
            texts.append(f"its stream was cut at {instant(cut['at'])}: {'; '.join(why)}")
        if self._record.get("cut"):
            texts.append(f"this ended the stream that ran by {self._record['cut']}")
        return texts

    def _changed(self) -> list[str]:
        """A word on it when the policy that explains is not the one that decided, or not of its mind."""
        texts = [self._evidence.note] if self._evidence.note else []
        by, decided = self._evidence.revision, self._record["numbers"][0]
        if by and by != decided:
            texts.append(f"revision {decided} is no longer kept: revision {by} explains, which may read more")
        said = self._document.get("decision")
        if said is not None and tuple(said["reasons"]) != tuple(self._record["reasons"]):
            texts.append(f"asked again, revision {by} answers: {', '.join(said['reasons'])}")
        return texts


def grounds(facts: Mapping[str, Any]) -> list[str]:
    """What a refusal rests on where policy was not asked, a sentence each (`gateway.proxy.grounds` finds them)."""
    found = []
    for names, sentence in _GROUNDS:
        if names[0] in facts:
            found.append(sentence.format(*(_said(name, facts.get(name, "")) for name in names)))
    return found


def placed(segments: Mapping[str, Any]) -> list[str]:
    """Which segments both ends are in, by what, and which of them reach which; `segments` as `explain` tells it."""
    texts = [
        f"the {end} is in segment {name}, {_put_there(by) or 'by its inventory record'}"
        for end in ("caller", "target")
        for name, by in sorted(segments.get(end, {}).items())
    ]
    return texts + [f"segment {way['from']} reaches {way['to']}" for way in segments.get("ways", ())]


def reaching(segments: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of the caller's segments reach which of the target's, a sentence each, with the selectors that put them
    there; `segments` as `explain` tells it."""
    return tuple(
        f"{_end(segments, 'caller', way['from'])} reaches {_end(segments, 'target', way['to'])}"
        for way in segments.get("ways", ())
    )


def _end(segments: Mapping[str, Any], end: str, name: str) -> str:
    why = _put_there(segments[end][name])
    return f"{name} ({why})" if why else name


def _put_there(by: Any) -> str:
    """By which selector; nothing for what the inventory says."""
    if isinstance(by, str):
        return ""
    conditions = {f"label {key}": values for key, values in by.get("labels", {}).items()}
    conditions |= {name.removesuffix("s"): values for name, values in by.items() if name != "labels"}
    asked = (f"{name} {' or '.join(map(str, values))}" for name, values in sorted(conditions.items()))
    return f"which selects {', '.join(asked)}"


def _said(name: str, value: Any) -> str:
    return instant(value) if name in _TIMES else str(value)


def instant(seconds: float) -> str:
    """UTC, to the second, of seconds since the Unix epoch."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


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
    return f"it ended at {instant(item['expires'])}"


_LACKS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "role": _role,
    "path": _path,
    "method": _method,
    "site": _site,
    "tier": _tier,
    "time": _time,
}

"""Decisions that nodes made by themselves, as their own records tell them: what `policies.explain` reads of them.

A record is the node's word. It came over the node's certificate, from its outbox, whose history is hashed; what it says
no gateway saw. So everything in it is read as outside data, and every sentence says whose word it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import SnapshotNumbers
from foundation.ports import NodeWord
from foundation.reasons import Reason
from policies.explain import instant
from policies.model import Staleness

_MAX_PATH = 2048
_CLASSES = ("", *Staleness)


@dataclass(frozen=True, slots=True)
class Told:
    """A decision by the word of `node`: its `record` in the form of the decision log's, the class of its bundle's age
    (empty where nothing was decided by one), and what is to be said of whose word it is."""

    record: Mapping[str, Any]
    node: str
    staleness: str
    sentences: tuple[str, ...]


def told(decision_id: str, words: Sequence[NodeWord]) -> Told:
    """What the first of `words`, all of this decision, says. Raises `Fault(NOT_FOUND)` when that cannot be read."""
    word, *others = words
    fields = Fields(word.body, "record", Reason.MESSAGE_MALFORMED)
    try:
        read = _refused(word, fields) if fields.has("source") else _local(word, fields)
    except (Fault, KeyError):
        detail = f"{word.node} delivered a record of this ID that cannot be read"
        raise Fault(Reason.NOT_FOUND, detail, field="id") from None
    record, staleness, sentence = read
    own = (
        f"this is the word of {word.node}, delivered from its outbox at {instant(word.received_at)}: "
        "no gateway decided it"
    )
    more = sorted({str(other.node) for other in others} - {str(word.node)})
    also = [f"{node} delivered a record of this ID too, later" for node in more]
    return Told({"id": decision_id, "at": word.at, **record}, str(word.node), staleness, (sentence, own, *also))


def refusals(words: Sequence[NodeWord]) -> tuple[str, ...]:
    """Of a stream that a gateway permitted: which nodes say that they did not take it, and why."""
    found = []
    for word in words:
        fields = Fields(word.body, "record", Reason.MESSAGE_MALFORMED)
        try:
            _, _, sentence = _refused(word, fields)
            why = "; ".join(reason.meaning for reason in _reasons(fields))
        except (Fault, KeyError):
            continue
        found.append(f"by its own word, {sentence}: {why}")
    return tuple(found)


_Read = tuple[dict[str, Any], str, str]


def _local(word: NodeWord, fields: Fields) -> _Read:
    """A decision for a program of the node's own (`agent.local`)."""
    staleness, numbers = fields.one_of("staleness", _CLASSES, ""), fields.section("numbers")
    record = {
        "allow": fields.flag("allow"),
        "reasons": [reason.code for reason in _reasons(fields)],
        "identity": str(word.node),
        "route": fields.text("route", max_length=63),
        "method": fields.text("method", max_length=16),
        "target": fields.text("path", max_length=_MAX_PATH),
        "grant": fields.text("grant", "", max_length=256),
        "numbers": [numbers.integer(name) for name in SnapshotNumbers._fields],
        "input": fields.value("input") if fields.has("input") else None,
    }
    revision = numbers.integer("policy")
    by = f"by its bundle of revision {revision}" if revision else "without a bundle"
    age = f" ({fields.number('age'):.0f} s old)" if staleness and fields.has("age") else ""
    facts = f", whose facts were {staleness}{age}" if staleness else ""
    whose = f"for its own program of the user {fields.integer('uid')}"
    return record, staleness, f"{word.node} decided this itself, {whose}, {by}{facts}"


def _refused(word: NodeWord, fields: Fields) -> _Read:
    """A stream that the node did not take although a gateway had permitted it (`agent.offer`)."""
    service, floor = fields.text("service", max_length=63), fields.integer("floor")
    record = {
        "allow": False,
        "reasons": [reason.code for reason in _reasons(fields)],
        "identity": fields.text("source", max_length=400),
        "route": fields.text("route", max_length=63),
        "method": "",
        "target": f"service {service} of {word.node}",
        "numbers": [floor, 0, 0, 0],
    }
    permitted = f"which a gateway had permitted by revision {fields.integer('revision')}"
    return record, "", f"{word.node} refused this stream itself, by its revision {floor}, {permitted}"


def _reasons(fields: Fields) -> tuple[Reason, ...]:
    """Raises `KeyError` for a code that this version does not know."""
    codes = fields.texts("reasons", most=64)
    if not codes:
        raise fields.fault("reasons", "expected one at least")
    return tuple(Reason.from_code(code) for code in codes)

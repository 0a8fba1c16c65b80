"""One decision as one line of JSON, made fast: it runs on every request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from foundation.ports import DecisionEntry

MAX_TEXT = 8192
MAX_INPUT_BYTES = 64 * 1024
OMITTED = b'{"omitted":"too large"}'
ID_PREFIX = '{"id":"'
CUT_PREFIX = b',"cut":"'


def encode(entry: DecisionEntry, parts: bytes) -> bytes:
    """The line, newline included. `parts` is what `with_input` or `like`, and `with_facts` or `with_cut` give, or
    nothing."""
    policy, revocations, postures, inventory = entry.numbers
    allow, reasons = "true" if entry.allow else "false", '","'.join(entry.reasons)
    head = (
        f'{ID_PREFIX}{entry.id}","at":{entry.at:.6f},"allow":{allow},"reasons":["{reasons}"],'
        f'"identity":{_text(entry.identity)},"route":{_text(entry.route)},'
        f'"method":{_text(entry.method)},"target":{_text(entry.target)},"grant":{_text(entry.grant)},'
        f'"numbers":[{policy},{revocations},{postures},{inventory}]'
    )
    return b"%s%s}\n" % (head.encode("ascii"), parts)


def with_input(document: bytes) -> bytes:
    """The part that holds a frozen input; newlines inside JSON are only ever white space."""
    kept = document if len(document) <= MAX_INPUT_BYTES else OMITTED
    return b',"input":' + (kept.replace(b"\n", b" ") if b"\n" in kept else kept)


def with_facts(facts: Mapping[str, Any]) -> bytes:
    """The part that holds what a denial rests on."""
    return b',"facts":%s' % json.dumps(facts, separators=(",", ":")).encode("ascii")


def with_cut(decision_id: str) -> bytes:
    """The part that says which stream this decision ended: the one that ran by `decision_id`."""
    return b'%s%s"' % (CUT_PREFIX, decision_id.encode("ascii"))


def like(decision_id: str) -> bytes:
    """The part that says: policy read the same as in this earlier decision of the segment."""
    return b',"input_of":"%s"' % decision_id.encode("ascii")


def _text(text: str) -> str:
    return quoted(text if len(text) <= MAX_TEXT else text[:MAX_TEXT])

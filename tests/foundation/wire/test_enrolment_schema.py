"""The published schema says what the parser does: both accept and both refuse the same messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.wire.enrolment import Begin, Challenge, Complete, Evidence, Issued, PcrSelection, Token
from foundation.wire.enrolment_schema import schema
from foundation.wire.reattestation import Next, Push

SCHEMA = schema()
TOKEN = Token(bytes(32), bytes(16), bytes(32)).encode()
MESSAGES: dict[str, Any] = {
    "begin": Begin("enrol", "tpm", "edge-1", TOKEN, b"c", (b"i", b"r"), b"e", b"a", b"t"),
    "challenge": Challenge(bytes(16), bytes(32), 60, b"b", b"s", PcrSelection("sha256", (0, 7)), bytes(32)),
    "complete": Complete(bytes(16), b"evidence", bytes(32)),
    "evidence": Evidence(b"c", b"s", b"q", b"t", (bytes(32),), b"log", b"csr", b"p"),
    "push": Push(b"q", b"s", (bytes(32),), b"log", 3, b"entries"),
    "question": Push(),
    "next": Next(bytes(32), PcrSelection("sha256", (0, 7)), 60, 3, True),
    "issued": Issued("spiffe://fleet.example/node/edge-1", (b"l", b"i", b"r"), 3, 2, "hardware", 3),
}
REFERENCE = Path(__file__).parents[3] / "docs/reference/enrolment.schema.json"


def _validator(name: str) -> Draft202012Validator:
    defined = "push" if name == "question" else name
    return Draft202012Validator({"$ref": f"#/$defs/{defined}", "$defs": SCHEMA["$defs"]})


def _parses(name: str, document: object) -> bool:
    """As both sides read it: token and SPIFFE ID are texts of their own, read after the message."""
    try:
        message = type(MESSAGES[name]).parse(json.dumps(document).encode())
        if isinstance(message, Begin) and message.token:
            Token.parse(message.token)
        if isinstance(message, Issued):
            SpiffeId.parse(message.spiffe_id)
    except Fault:
        return False
    return True


def test_the_published_file_is_fresh() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(REFERENCE.read_text()) == SCHEMA


@pytest.mark.parametrize("name", MESSAGES)
def test_what_we_send_is_by_the_schema(name: str) -> None:
    document = json.loads(MESSAGES[name].encode())
    _validator(name).validate(document)
    assert _parses(name, document)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.sampled_from(["", "!", "AAAA", "AA==", "AAA", "x" * 70, "enrol", "renew", "sp1_", "../x", "spiffe://a/node/b"]),
    st.lists(st.sampled_from(["AAAA", "?", 3]), max_size=30),
    st.dictionaries(st.sampled_from(["bank", "indices", "attest"]), st.just(1), max_size=2),
)


@given(name=st.sampled_from(list(MESSAGES)), pick=st.integers(0, 99), value=VALUES, drop=st.booleans())
@settings(max_examples=500, deadline=None)
def test_what_the_schema_refuses_the_parser_refuses(name: str, pick: int, value: object, drop: bool) -> None:
    """The schema is never stricter than the parser is, and no looser but where docs/protocol.md says so."""
    document = json.loads(MESSAGES[name].encode())
    field = list(document)[pick % len(document)]
    if drop:
        del document[field]
    else:
        document[field] = value
    if not _validator(name).is_valid(document):
        assert not _parses(name, document)


@pytest.mark.parametrize("name", MESSAGES)
def test_unknown_fields_are_refused_by_both(name: str) -> None:
    document = json.loads(MESSAGES[name].encode()) | {"more": 1}
    assert not _validator(name).is_valid(document)
    assert not _parses(name, document)

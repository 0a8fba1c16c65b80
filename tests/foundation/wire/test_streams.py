"""What frames say in JSON: written, read again, and nothing but that is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.streams import (
    MAX_SERVICES,
    Hello,
    StreamAnswer,
    StreamCall,
    StreamRefusal,
    StreamRelay,
    StreamRequest,
    reason_of,
)
from foundation.wire.tunnel import MAX_DOCUMENT

SOURCE = SpiffeId.parse("spiffe://fleet.example/node/a")
REQUEST = StreamRequest("metrics", "edge-7")
DOCUMENTS: list[Any] = [
    Hello(),
    Hello("sallyport-agent 1.0", ("metrics", "ssh"), 7),
    REQUEST,
    StreamRequest("syslog", "edge-7", "udp"),
    StreamCall(SOURCE, ("lab", "eu"), "metrics", "exporter", "tcp", 7, "d-1"),
    StreamRelay(REQUEST, b"der", 3, "d-1"),
    StreamAnswer(),
    StreamAnswer("d-1"),
    StreamRefusal(Reason.SERVICE_NOT_OFFERED, "d-1"),
]


def ids(document: object) -> str:
    return type(document).__name__


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_what_is_written_is_read(document: Any) -> None:
    assert type(document).parse(document.encode()) == document
    assert len(document.encode()) <= MAX_DOCUMENT


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_unknown_and_missing_fields_are_refused(document: Any) -> None:
    fields = json.loads(document.encode())
    for wrong in (fields | {"more": 1}, *({k: v for k, v in fields.items() if k != name} for name in fields)):
        with pytest.raises(Fault) as caught:
            type(document).parse(json.dumps(wrong).encode())
        assert caught.value.reason is Reason.MESSAGE_MALFORMED


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_each_field_has_its_type(document: Any) -> None:
    fields = json.loads(document.encode())
    for name in fields:
        for wrong in (None, {}, [[]], 1.5):
            with pytest.raises(Fault):
                type(document).parse(json.dumps(fields | {name: wrong}).encode())


def test_names_are_names() -> None:
    for wrong in ("", "A", "a/b", "a" * 64, "a\n", "é"):
        for document in (StreamRequest(wrong, "b"), StreamRequest("a", wrong), Hello(services=(wrong,))):
            with pytest.raises(Fault):
                type(document).parse(document.encode())


def test_only_protocols_and_versions_that_are_known() -> None:
    with pytest.raises(Fault):
        StreamRequest.parse(StreamRequest("a", "b", "sctp").encode())
    with pytest.raises(Fault):
        Hello.parse(json.dumps(json.loads(Hello().encode()) | {"version": 2}).encode())


def test_a_node_has_a_bounded_number_of_services() -> None:
    services = tuple(f"s{number}" for number in range(MAX_SERVICES + 1))
    assert Hello.parse(Hello(services=services[:-1]).encode()).services == services[:-1]
    with pytest.raises(Fault):
        Hello.parse(Hello(services=services).encode())


def test_a_code_that_a_newer_side_knows_alone_is_read() -> None:
    assert reason_of("not_invented_yet") is Reason.INTERNAL
    raw = json.dumps({"reason": "not_invented_yet", "decision": ""}).encode()
    assert StreamRefusal.parse(raw) == StreamRefusal(Reason.INTERNAL)

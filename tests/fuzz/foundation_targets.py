"""Fuzz targets of foundation: whatever reads bytes from outside. What is accepted must also come back unchanged."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from foundation.audit.export import verify_export
from foundation.audit.records import TreeHead
from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.identifiers import SpiffeId
from foundation.identity import (
    AttestationClass,
    Change,
    Heartbeat,
    IdentityChanged,
    IdentityRecord,
    PolicyPublished,
    Posture,
    PostureChanged,
    Revocation,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason
from foundation.trace import TraceContext
from foundation.wire.bundle import BundleTerms, NodeBundle
from foundation.wire.changes import encode_change, parse_change
from foundation.wire.enrolment import Begin, Challenge, Complete, Evidence, Issued, PcrSelection, Token
from foundation.wire.proxy_protocol import FIXED_BYTES, LOCAL, Addresses, parse_header, proxy_header, remaining
from foundation.wire.records import CHAIN_START, NodeRecord, Receipt, RecordBatch, RecordKind
from foundation.wire.streams import Hello, StreamAnswer, StreamCall, StreamRefusal, StreamRelay, StreamRequest
from foundation.wire.tunnel import HEADER, MAX_DATAGRAM, Kind, TunnelState
from foundation.wire.tunnel_events import DataReceived, StreamRequested

_EXAMPLES: dict[str, Any] = {
    "begin": Begin("enrol", "tpm", "n1", "t", b"ek", (b"c",), b"e", b"a", b"t"),
    "challenge": Challenge(b"s" * 16, b"n" * 32, 60, b"b", b"e", PcrSelection("sha256", (0, 7)), b"k" * 32),
    "complete": Complete(b"s" * 16, b"evidence", b"p" * 32),
    "evidence": Evidence(b"c", b"s", b"q", b"s", (b"v",), b"log", b"csr"),
    "issued": Issued("spiffe://fleet/node/n1", (b"leaf",), 2, 1, "hardware", 3),
}
_NODE = SpiffeId.parse("spiffe://fleet.example/node/n1")
_REQUEST = StreamRequest("metrics", "n2")
_EXAMPLES |= {
    "hello": Hello("agent", ("metrics",), 7),
    "stream_request": _REQUEST,
    "stream_call": StreamCall(_NODE, ("lab",), "metrics", "exporter", "tcp", 7, "d"),
    "stream_relay": StreamRelay(_REQUEST, b"der", 3, "d"),
    "stream_answer": StreamAnswer("d"),
    "stream_refusal": StreamRefusal(Reason.TARGET_ABSENT, "d"),
}
_LINE = NodeRecord(1.5, RecordKind.DECISION, {"id": "d", "allow": True}).encode()
_EXAMPLES |= {
    "node_bundle": NodeBundle(
        at=9.0,
        numbers=SnapshotNumbers(1, 2, 3, 4),
        policy_key=b"-----BEGIN PUBLIC KEY-----",
        record=IdentityRecord(_NODE, State.ACTIVE, 2, ("r",), 1, "eu", "lab", "edge", {"k": "v"}, {"m": "1"}),
        posture=Posture(AttestationClass.VIRTUAL, Verdict.PASSED),
        attested_until=60.0,
        terms=BundleTerms(),
        archive=b"archive\n",
    ),
    "record_batch": RecordBatch("0" * 32, 1, CHAIN_START, (_LINE, _LINE)),
    "node_record": NodeRecord(1.5, RecordKind.GAP, {"dropped": {"health": 2}}),
    "receipt": Receipt(7, CHAIN_START),
}
_CHANGES: list[Change] = [
    Revocation(1, _NODE, "0a", "key_compromise", 5.5),
    PostureChanged(1, _NODE, Posture(AttestationClass.VIRTUAL, Verdict.PASSED), 9.0),
    IdentityChanged(1, IdentityRecord(_NODE, State.ACTIVE, 2, ("r",), 1, "eu", "lab", "edge", {"k": "v"}, {"m": "1"})),
    PolicyPublished(1, b"bundle"),
    Heartbeat(5.0, SnapshotNumbers(1, 2, 3, 4)),
]


def _json(raw: bytes) -> None:
    value = strict_json(raw, "", Reason.MESSAGE_MALFORMED)
    assert strict_json(json.dumps(value).encode(), "", Reason.MESSAGE_MALFORMED) == value


def _fields(raw: bytes) -> None:
    fields = Fields.from_json(raw, "", Reason.MESSAGE_MALFORMED, max_bytes=8192)
    reads = (
        lambda f: f.text("a"),
        lambda f: f.flag("a"),
        lambda f: f.integer("a"),
        lambda f: f.duration("a"),
        lambda f: f.size("a"),
        lambda f: f.base64("a", max_bytes=100),
        lambda f: f.texts("a"),
        lambda f: f.integers("a", least=0, most=9, count=9),
        lambda f: f.mapping("a"),
        lambda f: f.section("a").finish(),
        lambda f: f.each("a", lambda inner: inner.text("a")),
        lambda f: f.finish(),
    )
    for read in reads:
        try:
            read(fields)
        except Fault:
            continue


def _message(kind: type[Any], raw: bytes) -> None:
    message = kind.parse(raw)
    assert kind.parse(message.encode()) == message


def _change(raw: bytes) -> None:
    change = parse_change(raw)
    assert parse_change(encode_change(change)[:-1]) == change


def _token(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    assert Token.parse(text).encode() == text


def _spiffe_id(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    assert str(SpiffeId.parse(text)) == text


def _trace(raw: bytes) -> None:
    context = TraceContext.parse(raw.decode("latin-1"))
    assert context is None or TraceContext.parse(context.header()) == context


def _head(raw: bytes) -> None:
    assert TreeHead.parse(raw).encode() == raw


def _export(raw: bytes) -> None:
    assert not verify_export(raw.splitlines(), Ed25519PublicKey.from_public_bytes(bytes(32))).ok


def _proxy_header(raw: bytes) -> None:
    addresses = parse_header(raw)
    assert len(raw) == FIXED_BYTES + remaining(raw[:FIXED_BYTES])
    if addresses is not None:
        assert parse_header(proxy_header(addresses)) == addresses


def _tunnel(raw: bytes) -> None:
    """The first octet says which side hears the rest, and in pieces of which size."""
    state = TunnelState(dials=raw[:1] < b"\x80", most_streams=4)
    state.open(b"{}")
    step, heard = 1 + (raw[0] & 0x7F if raw else 0), 0
    try:
        for at in range(1, len(raw), step):
            for event in state.receive(raw[at : at + step], 0.0):
                if isinstance(event, StreamRequested):
                    state.accept(event.stream, b"{}")
                elif isinstance(event, DataReceived):
                    heard += len(event.data)
                    state.consumed(event.stream, len(event.data))
    finally:
        assert heard <= len(raw)
        assert len(state._head) < HEADER.size + MAX_DATAGRAM


TARGETS = {
    "json": _json,
    "fields": _fields,
    **{name: partial(_message, type(example)) for name, example in _EXAMPLES.items()},
    "change": _change,
    "token": _token,
    "spiffe_id": _spiffe_id,
    "traceparent": _trace,
    "audit_head": _head,
    "audit_export": _export,
    "proxy_header": _proxy_header,
    "tunnel": _tunnel,
}
_ENDS = Addresses(("192.0.2.7", 40_000), ("198.51.100.1", 443)), Addresses(("2001:db8::7", 1), ("2001:db8::1", 2))


def _frame(kind: Kind, stream: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, stream, len(body)) + body


_GREETING, _PING = _frame(Kind.HELLO, 0, b"{}"), _frame(Kind.PING, 0, bytes(8))
_TUNNELS = (  # heard by who accepts, and by who dials
    _frame(Kind.OPEN, 1, b"{}")
    + _frame(Kind.DATA, 1, b"abc")
    + _frame(Kind.CREDIT, 1, b"\0\0\1\0")
    + _frame(Kind.END, 1),
    _frame(Kind.OPENED, 1, b"{}") + _frame(Kind.DATAGRAM, 1, b"abc") + _frame(Kind.RESET, 1, b"internal"),
)
_HEAD = TreeHead(0, "2026-11-23T00:00:00.000Z", bytes(32), bytes(64))
SEEDS = {
    "json": [b'{"a":[1,2.5,null,true,"\\u00e9"]}'],
    "fields": [b'{"a":"1h"}', b'{"a":"4KiB"}', b'{"a":"AAE="}', b'{"a":[1]}', b'{"a":[{"a":"x"}]}', b'{"a":{"b":"c"}}'],
    **{name: [example.encode()] for name, example in _EXAMPLES.items()},
    "change": [encode_change(example)[:-1] for example in _CHANGES],
    "token": [Token(bytes(32), bytes(16), bytes(32)).encode().encode()],
    "spiffe_id": [b"spiffe://fleet.example/node/n1"],
    "traceparent": [b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    "audit_head": [_HEAD.encode()],
    "audit_export": [b'{"consistency":null,"first":0,"head":' + json.dumps(_HEAD.to_json()).encode() + b"}\n{}\n"],
    "proxy_header": [LOCAL, *map(proxy_header, _ENDS)],
    "tunnel": [
        bytes([side | 9]) + _GREETING + frames + _PING + _frame(Kind.DRAIN, 0)
        for side, frames in zip((0x80, 0), _TUNNELS, strict=True)
    ],
}

"""HTTP/2 header lists as HTTP/1.1 heads: the same request, or a refusal; never two requests, never another line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.headers import Field
from gateway.proxy.http1 import CHUNKED, Limits, RequestReader, ResponseReader
from gateway.proxy.http2 import as_http1, connected_fields, informational_fields, response_fields, trailers_of

PSEUDO = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/x?y=1")]
MALFORMED = {Reason.REQUEST_MALFORMED, Reason.REQUEST_AMBIGUOUS}
READER, ANSWERS = RequestReader(Limits()), ResponseReader(Limits(64 << 10, 256))


def changed(name: bytes, value: bytes) -> list[Field]:
    return [(each, value if each == name else before) for each, before in PSEUDO]


def without(name: bytes) -> list[Field]:
    return [field for field in PSEUDO if field[0] != name]


def refused(fields: list[Field], *, ended: bool = True) -> Reason:
    with pytest.raises(Fault) as caught:
        READER.read(as_http1(fields, ended=ended))
    return caught.value.reason


def test_a_header_list_is_the_head_that_it_stands_for() -> None:
    fields = [*PSEUDO, (b"accept", b"*/*"), (b"te", b"trailers"), (b"host", b"A.example"), (b"x-a", b"")]
    assert as_http1(fields, ended=True) == (
        b"POST /x?y=1 HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\nte: trailers\r\nx-a: \r\n\r\n"
    )


def test_a_body_has_the_length_that_is_declared_or_chunks() -> None:
    assert READER.read(as_http1(PSEUDO, ended=False)).length == CHUNKED
    assert READER.read(as_http1([*PSEUDO, (b"content-length", b"7")], ended=False)).length == 7
    assert READER.read(as_http1([*PSEUDO, (b"content-length", b"0")], ended=True)).length == 0
    assert refused([*PSEUDO, (b"content-length", b"7")]) is Reason.REQUEST_AMBIGUOUS
    for twice in (b"7", b"8"):
        fields = [*PSEUDO, (b"content-length", b"7"), (b"content-length", twice)]
        assert refused(fields, ended=False) is Reason.REQUEST_MALFORMED
    for odd in (b"", b"+7", b"07", b"7, 7", b"0x7", "\u0667".encode()):
        assert refused([*PSEUDO, (b"content-length", odd)], ended=False) in MALFORMED
    for method in (b"GET", b"HEAD"):
        assert refused(changed(b":method", method), ended=False) is Reason.REQUEST_AMBIGUOUS


def test_crumbs_of_a_cookie_are_one_field() -> None:
    fields = [*PSEUDO, (b"cookie", b"a=1"), (b"accept", b"*/*"), (b"cookie", b"b=2")]
    assert READER.read(as_http1(fields, ended=True)).fields == [(b"accept", b"*/*"), (b"cookie", b"a=1; b=2")]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"accept", b"*/*")],
        *[without(name) for name, _ in PSEUDO],
        *[[*PSEUDO, field] for field in PSEUDO],
        *[changed(name, b"") for name, _ in PSEUDO],
        *[changed(name, value + byte) for name, value in PSEUDO for byte in (b" ", b"\r\n", b"\0", b"\t", b"\xe9")],
        [(b"accept", b"*/*"), *PSEUDO],
        [*PSEUDO[:3], (b"accept", b"*/*"), PSEUDO[3]],
        [*PSEUDO, (b":status", b"200")],
        [*PSEUDO, (b":other", b"1")],
        [*PSEUDO, (b":", b"1")],
        changed(b":scheme", b"http"),
        changed(b":scheme", b"HTTPS"),
        [*PSEUDO, (b"Accept", b"*/*")],
        [*PSEUDO, (b"", b"1")],
        [*PSEUDO, (b"a b", b"1")],
        [*PSEUDO, (b"a:b", b"1")],
        [*PSEUDO, (b"a\r\nhost", b"evil")],
        [*PSEUDO, (b"x-a", b"1\r\nhost: evil")],
        [*PSEUDO, (b"x-a", b"1\nhost: evil")],
        [*PSEUDO, (b"x-a", b"1\0")],
        [*PSEUDO, (b"x-a", b" 1")],
        [*PSEUDO, (b"x-a", b"1\t")],
        [*PSEUDO, (b"connection", b"close")],
        [*PSEUDO, (b"keep-alive", b"timeout=5")],
        [*PSEUDO, (b"proxy-connection", b"keep-alive")],
        [*PSEUDO, (b"transfer-encoding", b"chunked")],
        [*PSEUDO, (b"upgrade", b"websocket")],
        [*PSEUDO, (b"http2-settings", b"AAMAAABk")],
        [*PSEUDO, (b"te", b"gzip")],
        [*PSEUDO, (b"te", b"trailers, gzip")],
    ],
)
def test_what_rfc_9113_calls_malformed_is_refused(fields: list[Field]) -> None:
    assert refused(fields) is Reason.REQUEST_MALFORMED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([*PSEUDO, (b"host", b"b.example")], Reason.REQUEST_AMBIGUOUS),
        (changed(b":authority", b"user@a.example"), Reason.REQUEST_AMBIGUOUS),
        (changed(b":authority", b"a.example,b"), Reason.REQUEST_AMBIGUOUS),
        (changed(b":method", b"TRACE"), Reason.METHOD_UNSUPPORTED),
        (changed(b":method", b"post"), Reason.METHOD_UNSUPPORTED),
        (changed(b":method", b"PRI"), Reason.METHOD_UNSUPPORTED),
        (changed(b":method", b"CONNECT"), Reason.METHOD_UNSUPPORTED),
        ([(b":method", b"CONNECT"), (b":authority", b"a.example:22")], Reason.REQUEST_MALFORMED),
        ([*PSEUDO, (b":protocol", b"websocket")], Reason.METHOD_UNSUPPORTED),
        ([*PSEUDO, (b"authorization", b"a"), (b"authorization", b"b")], Reason.REQUEST_AMBIGUOUS),
        ([*PSEUDO, (b"expect", b"a-miracle")], Reason.EXPECTATION_UNKNOWN),
        ([*PSEUDO, *[(b"x-%d" % i, b"") for i in range(101)]], Reason.HEADERS_TOO_LARGE),
        ([*PSEUDO, (b"x-a", b"a" * (16 << 10))], Reason.HEADERS_TOO_LARGE),
        (changed(b":path", b"/" + b"a" * (9 << 10)), Reason.URI_TOO_LONG),
    ],
)
def test_what_http_1_refuses_is_refused_for_the_same_reason(fields: list[Field], reason: Reason) -> None:
    assert refused(fields) is reason


def test_a_websocket_is_asked_for_by_extended_connect() -> None:
    fields = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *PSEUDO[1:], (b"sec-websocket-version", b"13")]
    head = READER.read(as_http1(fields, ended=False, websocket_key=b"a2V5"))
    assert (head.method, head.upgrade, head.length) == (b"GET", b"websocket", 0)
    assert (b"sec-websocket-key", b"a2V5") in head.fields
    for wrong in ([*fields, (b"content-length", b"0")], [(b":protocol", b"h2c"), *without(b":method"), fields[0]]):
        with pytest.raises(Fault) as caught:
            as_http1(wrong, ended=False, websocket_key=b"a2V5")
        assert caught.value.reason is Reason.UPGRADE_REFUSED
    with pytest.raises(Fault):
        READER.read(as_http1([*fields, (b"sec-websocket-key", b"bXk=")], ended=False, websocket_key=b"a2V5"))


def test_trailers_are_fields() -> None:
    assert trailers_of([(b"grpc-status", b"0"), (b"cookie", b"a=b")]) == [(b"grpc-status", b"0")]
    for bad in ([(b":path", b"/")], [(b"A", b"1")], [(b"a", b"1\n")], [(b"a", b"1")] * 33, [(b"a", b"1" * 9000)]):
        with pytest.raises(Fault):
            trailers_of(bad)


def test_answers_keep_their_fields_in_lower_case() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nSet-Cookie: b=1\r\nConnection: X-C\r\nX-C: 1\r\n"
    raw += b"Content-Length: 5\r\n\r\n"
    assert response_fields(ANSWERS.read(raw, b"GET"), "d-1", head_only=False) == [
        (b":status", b"200"),
        (b"content-type", b"a"),
        (b"set-cookie", b"b=1"),
        (b"x-sallyport-decision", b"d-1"),
        (b"content-length", b"5"),
    ]
    early = ANSWERS.read(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"GET")
    assert informational_fields(early) == [(b":status", b"103"), (b"link", b"</a>")]


@pytest.mark.parametrize(
    ("raw", "method", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", None),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HEAD", b"9"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"GET", b"9"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"GET", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", None),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", b"POST", b"0"),
    ],
)
def test_a_length_is_told_where_it_is_known(raw: bytes, method: bytes, length: bytes | None) -> None:
    told = dict(response_fields(ANSWERS.read(raw, method), "d", head_only=method == b"HEAD"))
    assert told.get(b"content-length") == length


def test_the_proof_of_a_websockets_key_is_for_the_gateway() -> None:
    raw = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n"
    raw += b"Sec-WebSocket-Protocol: v\r\n\r\n"
    names = [name for name, _ in connected_fields(ANSWERS.read(raw, b"GET"), "d")]
    assert names == [b":status", b"sec-websocket-protocol", b"x-sallyport-decision"]


_BYTES = st.sampled_from(
    [b"", b"a", b"A", b" ", b"\r", b"\n", b"\r\n", b"\0", b":", b"host", b"x-a", b"close", b"1", b"/", b"\xff"]
)
_TEXTS = st.lists(_BYTES, max_size=4).map(b"".join)
_NAMES = _TEXTS | st.sampled_from([b"cookie", b"te", b"connection", b"content-length", b"transfer-encoding", b":path"])


@given(st.lists(st.tuples(_NAMES, _TEXTS), max_size=6), st.booleans())
@settings(max_examples=1500, deadline=None)
def test_nothing_becomes_another_line(fields: list[Field], ended: bool) -> None:
    """Whatever is accepted has one line for each field that was sent, and the pseudo-header fields that were sent."""
    try:
        raw = as_http1([*PSEUDO, *fields], ended=ended)
        head = READER.read(raw)
    except Fault:
        return
    assert (head.method, head.target, head.host) == (b"POST", b"/x?y=1", b"a.example")
    sent = [(name, value) for name, value in fields if name not in {b"te", b"host", b"cookie", b"content-length"}]
    written = [line.partition(b": ") for line in raw.split(b"\r\n")[2:-2]]
    ours = {b"transfer-encoding", b"cookie", b"content-length"}
    assert [(name, value) for name, _, value in written if name not in ours] == sent

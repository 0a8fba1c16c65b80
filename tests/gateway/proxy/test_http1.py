"""Bytes are one message, read in one way, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.http1 import (
    CHUNKED,
    REMEMBERED,
    REMEMBERED_ANSWERS,
    REMEMBERED_BYTES,
    UNTIL_CLOSE,
    ChunkedBody,
    Limits,
    RequestHead,
    RequestReader,
    ResponseReader,
    body_of,
)
from gateway.proxy.http1_write import chunks

READER = RequestReader(Limits())
ANSWERS = ResponseReader(Limits(64 << 10, 256))


def reason_of(raw: bytes) -> Reason | None:
    try:
        READER.read(raw)
    except Fault as fault:
        return fault.reason
    return None


def with_lines(*lines: bytes, method: bytes = b"POST") -> bytes:
    return b"\r\n".join((method + b" /x HTTP/1.1", b"Host: a", *lines)) + b"\r\n\r\n"


def test_a_request_head_is_read() -> None:
    head = READER.read(b"POST /x?y HTTP/1.1\r\nHost: Control.Example:8443\r\nA: b \r\nContent-Length: 12\r\n\r\n")
    assert (head.method, head.target, head.length) == (b"POST", b"/x?y", 12)
    assert (head.host, head.authority) == (b"control.example", b"control.example:8443")
    assert head.fields == [(b"A", b"b ")]
    assert head.keep_alive
    assert READER.read(with_lines(b"Transfer-Encoding: Chunked")).length == CHUNKED
    assert READER.read(with_lines()).length == 0
    assert not READER.read(with_lines(b"Connection: Close")).keep_alive


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"GET  / HTTP/1.1", Reason.REQUEST_MALFORMED),
        (b"GET / HTTP/1.0", Reason.REQUEST_MALFORMED),
        (b"GET / HTTP/2.0", Reason.REQUEST_MALFORMED),
        (b"GET / HTTP/0.9", Reason.REQUEST_MALFORMED),
        (b"GET /", Reason.REQUEST_MALFORMED),
        (b"GET / RTSP/1.0", Reason.REQUEST_MALFORMED),
        (b"GET /a b HTTP/1.1", Reason.REQUEST_MALFORMED),
        (b"get / HTTP/1.1", Reason.REQUEST_MALFORMED),
        (b"\r\nGET / HTTP/1.1", Reason.REQUEST_MALFORMED),
        (b"GET\t/ HTTP/1.1", Reason.REQUEST_MALFORMED),
        (b"OPTIONS / HTTP/1.1", Reason.METHOD_UNSUPPORTED),
        (b"TRACE / HTTP/1.1", Reason.METHOD_UNSUPPORTED),
        (b"CONNECT a:1 HTTP/1.1", Reason.METHOD_UNSUPPORTED),
        (b"PRI * HTTP/2.0", Reason.REQUEST_MALFORMED),
    ],
)
def test_a_request_line_has_one_form(line: bytes, reason: Reason) -> None:
    assert reason_of(line + b"\r\nHost: a\r\n\r\n") is reason


@pytest.mark.parametrize(
    "host", [b"", b"a b", b"a@b", b"a:0", b"a:", b"a:99999999", b"a.", b"a..b", b"caf\xe9", b"a/b", b"a,b"]
)
def test_a_host_is_a_name_and_a_port(host: bytes) -> None:
    assert reason_of(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host) is Reason.REQUEST_AMBIGUOUS


@pytest.mark.parametrize("host", [b"a", b"A.example", b"10.0.0.1:80", b"[::1]:8443", b"[fe80::1]", b"node_1"])
def test_hosts_that_are_taken(host: bytes) -> None:
    assert reason_of(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host) is None


def test_limits_hold_for_whole_and_for_partial_heads() -> None:
    reader = RequestReader(Limits(head_bytes=2048, fields=8, target_bytes=256))
    cases = (
        (b"GET /" + b"a" * 300, Reason.URI_TOO_LONG),
        (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\n", Reason.URI_TOO_LONG),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 2048, Reason.HEADERS_TOO_LARGE),
    )
    for raw, reason in cases:
        with pytest.raises(Fault) as refused:
            reader.check_partial(raw)
        assert refused.value.reason is reason
    with pytest.raises(Fault) as refused:
        reader.read(with_lines(*(b"A%d: b" % i for i in range(8))))
    assert refused.value.reason is Reason.HEADERS_TOO_LARGE


@pytest.mark.parametrize("lines", [(b"Expect: 200-maybe",), (b"Expect: 100-continue, x",)])
def test_an_unknown_expectation_is_refused(lines: tuple[bytes, ...]) -> None:
    assert reason_of(with_lines(*lines)) is Reason.EXPECTATION_UNKNOWN


@pytest.mark.parametrize(
    ("lines", "length", "keep"),
    [
        ((b"HTTP/1.1 200 OK", b"Content-Length: 3"), 3, True),
        ((b"HTTP/1.1 200 OK",), UNTIL_CLOSE, True),
        ((b"HTTP/1.0 200 OK", b"Content-Length: 3"), 3, False),
        ((b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked"), CHUNKED, True),
        ((b"HTTP/1.1 304 Not Modified", b"Content-Length: 3"), 0, True),
        ((b"HTTP/1.1 204 No Content", b"Connection: close"), 0, False),
    ],
)
def test_a_responses_length(lines: tuple[bytes, ...], length: int, keep: bool) -> None:
    head = ANSWERS.read(b"\r\n".join(lines) + b"\r\n\r\n", b"GET")
    assert (head.length, head.keep_alive) == (length, keep)


def test_a_response_to_head_has_no_body_and_tells_its_length() -> None:
    head = ANSWERS.read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"HEAD")
    assert (head.length, head.declared) == (0, 3)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: set-cookie\r\nSet-Cookie: a=b\r\n\r\n",
    ],
)
def test_responses_that_are_none(raw: bytes) -> None:
    with pytest.raises(Fault) as refused:
        ANSWERS.read(raw, b"GET")
    assert refused.value.reason is Reason.UPSTREAM_INVALID


def read_in_pieces(raw: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool]:
    body = ChunkedBody(Reason.REQUEST_AMBIGUOUS)
    payload, rest, previous = b"", b"", 0
    for cut in [*sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]:
        if body.done:
            rest += raw[previous:cut]
        else:
            piece = body.feed(raw[previous:cut])
            payload += piece.payload
            rest += piece.rest
        previous = cut
    return payload, rest, body.done


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=20), st.lists(st.integers(0, 400)))
@settings(max_examples=300, deadline=None)
def test_chunks_are_read_the_same_however_they_arrive(parts: list[bytes], behind: bytes, cuts: list[int]) -> None:
    raw = b"".join(chunks(part, False) for part in parts) + chunks(b"", True) + behind
    assert read_in_pieces(raw, cuts) == (b"".join(parts), behind, True)


@given(st.lists(st.integers(0, 400)))
@settings(max_examples=100, deadline=None)
def test_trailers_end_a_body_however_they_arrive(cuts: list[int]) -> None:
    assert read_in_pieces(b"2\r\nab\r\n0\r\nA: b\r\nC: d\r\n\r\nnext", cuts) == (b"ab", b"next", True)


@pytest.mark.parametrize(
    "raw",
    [
        b"5;a=b\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\n5\r\n",
        b"00000000000000005\r\n",
        b"FFFFFFFFFFFFFFFFF\r\n",
        b"0\r\nA\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA: b\n\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 2000,
        b"1" * 40,
    ],
)
@pytest.mark.parametrize("one_by_one", [True, False])
def test_odd_chunks_are_refused(raw: bytes, one_by_one: bool) -> None:
    with pytest.raises(Fault) as refused:
        read_in_pieces(raw, list(range(len(raw))) if one_by_one else [])
    assert refused.value.reason in {Reason.REQUEST_AMBIGUOUS, Reason.REQUEST_MALFORMED}


@given(st.integers(0, 50), st.binary(max_size=80), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_a_length_is_taken_at_its_word(length: int, raw: bytes, cut: int) -> None:
    body, payload, rest = body_of(length, Reason.REQUEST_AMBIGUOUS), b"", b""
    for part in (raw[:cut], raw[cut:]):
        if body.done:
            rest += part
        else:
            piece = body.feed(part)
            payload, rest = payload + piece.payload, rest + piece.rest
    assert payload == raw[:length]
    assert payload + rest == raw
    assert body.done is (len(raw) >= length)


def reading_of(reader: RequestReader, raw: bytes) -> RequestHead | tuple[Reason, str]:
    try:
        return reader.read(raw)
    except Fault as fault:
        return fault.reason, fault.detail


LINES = st.sampled_from(
    [
        *(b"%b /a/b?c=%%20d HTTP/1.1" % method for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS")),
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.0",
        b"GET http://a/ HTTP/1.1",
        b"POST /a\x01 HTTP/1.1",
        b"GET /other HTTP/1.1",
        b"get / HTTP/1.1",
    ]
)
SECTIONS = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"Host: b:1",
            b"Content-Length: 3",
            b"Content-Length: 03",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b"Connection: upgrade",
            b"Upgrade: websocket",
            b"Expect: 100-continue",
            b"Authorization: Bearer x",
            b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            b"A: b",
            b" folded",
            b"X-Forwarded-For: 1.1.1.1",
        ]
    ),
    max_size=4,
)


@given(st.lists(st.tuples(LINES, SECTIONS), min_size=1, max_size=12))
def test_what_is_remembered_of_a_section_is_what_reading_it_would_say(heads: list[tuple[bytes, list[bytes]]]) -> None:
    remembering = RequestReader(Limits())
    for line, section in heads:
        raw = b"\r\n".join((line, *section)) + b"\r\n\r\n"
        assert reading_of(remembering, raw) == reading_of(RequestReader(Limits()), raw)


def test_sections_with_secrets_are_not_remembered() -> None:
    reader, answers = RequestReader(Limits()), ResponseReader(Limits())
    for line in (b"Authorization: Bearer s3cret", b"cookie: s3cret"):
        reader.read(with_lines(line))
    answers.read(b"HTTP/1.1 200 OK\r\nSet-Cookie: s3cret\r\n\r\n", b"GET")
    assert not reader.remembered
    assert not answers.remembered
    reader.read(with_lines(b"A: b"))
    assert reader.remembered == 1


def test_what_is_remembered_is_bounded() -> None:
    reader = RequestReader(Limits())
    for number in range(REMEMBERED + 10):
        reader.read(with_lines(b"A: %d" % number))
    reader.read(with_lines(b"A: " + b"a" * REMEMBERED_BYTES))
    assert reader.remembered == REMEMBERED
    answers = ResponseReader(Limits())
    for number in range(REMEMBERED_ANSWERS + 10):
        answers.read(b"HTTP/1.1 200 OK\r\nDate: %d\r\nContent-Length: 0\r\n\r\n" % number, b"GET")
    assert answers.remembered == REMEMBERED_ANSWERS


def test_what_never_comes_again_is_not_remembered() -> None:
    reader, upgrade = RequestReader(Limits()), (b"Connection: upgrade", b"Upgrade: websocket")
    reader.read(with_lines(*upgrade, b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", method=b"GET"))
    reader.read(with_lines(b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    assert not reader.remembered


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_a_remembered_answer_is_that_to_the_same_method(method: bytes) -> None:
    reader, raw = ResponseReader(Limits()), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    for each in (b"GET", b"HEAD", b"GET"):
        reader.read(raw, each)
    assert reader.read(raw, method) == ResponseReader(Limits()).read(raw, method)

"""The authorised request is the forwarded request, and the same one, whether it came by HTTP/1.1 or by HTTP/2."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.tls import HTTP_2
from gateway.proxy.headers import Field
from tests.support.differential import check_authorised
from tests.support.driven import DrivenGateway, Outcome, driven_gateway
from tests.support.mutation import pieces

_OURS = re.compile(rb"(?<=\r\n)(x-sallyport-decision|traceparent|via): [^\r]*\r\n")
_CONFIGURATION = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)


class Request(NamedTuple):
    method: bytes
    target: bytes
    fields: list[Field]
    body: bytes | None
    declared: bool  # the body's length, rather than chunks or DATA alone
    trailers: list[Field]

    def by_http1(self) -> bytes:
        lines = [self.method + b" " + self.target + b" HTTP/1.1", b"Host: control.example"]
        lines += [name + b": " + value for name, value in self.fields]
        framed = b""
        if self.body is not None and self.declared:
            lines.append(b"Content-Length: %d" % len(self.body))
            framed = self.body
        elif self.body is not None:
            lines.append(b"Transfer-Encoding: chunked")
            framed = b"%x\r\n%b\r\n" % (len(self.body), self.body) if self.body else b""
            framed += b"".join([b"0\r\n", *[b"%b: %b\r\n" % field for field in self.trailers], b"\r\n"])
        return b"\r\n".join(lines) + b"\r\n\r\n" + framed

    def by_http2(self, client: H2Connection) -> None:
        number = client.get_next_available_stream_id()
        pseudo = [(b":method", self.method), (b":scheme", b"https"), (b":path", self.target)]
        fields = [*pseudo, (b":authority", b"control.example"), *self.fields]
        if self.body is not None and self.declared:
            fields.append((b"content-length", b"%d" % len(self.body)))
        client.send_headers(number, fields, end_stream=self.body is None)
        if self.body is not None:
            client.send_data(number, self.body, end_stream=not self.trailers)
            if self.trailers:
                client.send_headers(number, self.trailers, end_stream=True)


_SEGMENTS = st.sampled_from([b"a", b"B9", b"caf%C3%A9", b"%61", b"..", b"%2F", b"", b";x", b"v1", b"~u"])
_TARGETS = st.tuples(st.lists(_SEGMENTS, max_size=3), st.sampled_from([b"", b"?a=1&b", b"?%zz", b"?a;b"]))
_NAMES = st.sampled_from(
    [
        b"accept",
        b"x-a",
        b"x_a",
        b"authorization",
        b"x-forwarded-for",
        b"x-sallyport-identity",
        b"impersonate-user",
        b"transfer_encoding",
        b"expect",
        b"traceparent",
        b"content-type",
        b"trailer",
        b"x-sum",
    ]
)
_VALUES = st.sampled_from([b"", b"1", b"a, b", b"caf\xe9", b"100-continue", b"x" * 300])


@st.composite
def _requests(draw: st.DrawFn) -> Request:
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"TRACE"]))
    segments, query = draw(_TARGETS)
    body = None if method in {b"GET", b"HEAD", b"TRACE"} else draw(st.none() | st.binary(max_size=40))
    fields = draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=4))
    fields += draw(st.sampled_from([[], [(b"te", b"trailers")]]))
    declared = draw(st.booleans())
    behind = [] if declared or body is None else draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=3))
    return Request(method, b"/" + b"/".join(segments) + query, fields, body, declared, behind)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[asyncio.Runner, DrivenGateway]]:
    with asyncio.Runner() as runner:
        entered = driven_gateway(tmp_path)
        yield runner, runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


def test_the_authorised_request_is_the_forwarded_request_on_both_protocols(
    gateway: tuple[asyncio.Runner, DrivenGateway],
) -> None:
    runner, driven = gateway
    seen: dict[bool, int] = {True: 0, False: 0}

    @given(_requests(), st.integers(0, 1 << 30))
    @settings(max_examples=500, deadline=None)
    def hold(request: Request, seed: int) -> None:
        client = H2Connection(_CONFIGURATION)
        client.initiate_connection()
        request.by_http2(client)
        chance = random.Random(seed)
        by_2 = runner.run(driven.feed(pieces(chance, client.data_to_send()), HTTP_2))
        by_1 = runner.run(driven.feed(pieces(chance, request.by_http1())))
        check_authorised(by_2)
        assert _decided(by_2) == _decided(by_1)
        assert [_OURS.sub(b"", raw) for _, raw in by_2.messages] == [_OURS.sub(b"", raw) for _, raw in by_1.messages]
        assert not by_2.rest
        assert not by_1.rest
        seen[bool(by_1.messages)] += 1

    hold()
    assert min(seen.values()) > 50


def _decided(outcome: Outcome) -> list[tuple[bool, tuple[str, ...], str, str]]:
    return [(entry.allow, entry.reasons, entry.method, entry.target) for entry in outcome.decided]

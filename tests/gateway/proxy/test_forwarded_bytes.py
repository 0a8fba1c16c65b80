"""What is authorised is what is forwarded, over generated requests, however they are cut up on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.proxy.headers import Role, role
from tests.support.differential import check_authorised
from tests.support.driven import DrivenGateway, driven_gateway
from tests.support.mutation import chunked, pieces

_SEGMENT = st.text("abcXYZ019-_~!$&'()*+,=:@", min_size=1, max_size=8).map(str.encode)
_ESCAPES = st.sampled_from([b"%61", b"%20", b"caf%C3%A9", b"%7e"])
_QUERY = st.text("abc019-._~!$&'()*+,=:@/?%20"[:-3], max_size=12).map(str.encode)
_NAMES = st.text("abcdefXYZ019-_.~^`|", min_size=1, max_size=12).map(str.encode)
_VALUES = st.binary(max_size=24).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip())
_SIZES = st.integers(0, 300)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    """Method, target, the whole message, its fields and its body."""
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"]))
    segments = draw(st.lists(_SEGMENT | _ESCAPES, max_size=4))
    query = draw(_QUERY)
    target = b"/" + b"/".join(segments) + (b"?" + query if query else b"")
    fields = [(name, value) for name, value in draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=6))]
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: control.example"]
    lines += [name + b": " + value for name, value in fields]
    body, framed = b"", b""
    if method not in {b"GET", b"HEAD"}:
        body = draw(st.binary(max_size=600))
        if draw(st.booleans()):
            cut = draw(_SIZES)
            parts = [each for each in (body[:cut], body[cut:]) if each]
            lines.append(b"Transfer-Encoding: chunked")
            framed = chunked(*parts)
        else:
            lines.append(b"Content-Length: %d" % len(body))
            framed = body
    return method, target, b"\r\n".join(lines) + b"\r\n\r\n" + framed, fields, body


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[asyncio.Runner, DrivenGateway]]:
    with asyncio.Runner() as runner:
        entered = driven_gateway(tmp_path)
        yield runner, runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


def test_authorised_bytes_are_forwarded_bytes(gateway: tuple[asyncio.Runner, DrivenGateway]) -> None:
    runner, driven = gateway

    @given(st.lists(_requests(), min_size=1, max_size=4), st.integers(0, 1 << 30))
    @settings(max_examples=400, deadline=None)
    def hold(requests: list[tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]], bytes]], seed: int) -> None:
        raw = b"".join(each[2] for each in requests)
        outcome = runner.run(driven.feed(pieces(random.Random(seed), raw)))
        check_authorised(outcome)
        assert len(outcome.messages) == len(requests)
        assert not outcome.rest
        for (method, target, _, fields, body), (forwarded, sent) in zip(requests, outcome.messages, strict=True):
            assert (forwarded.method.encode(), forwarded.target.encode()) == (method, target)
            assert (forwarded.host, forwarded.body) == ("control.example", body)
            _check_fields(fields, sent)

    hold()


def _check_fields(fields: list[tuple[bytes, bytes]], sent: bytes) -> None:
    """What passes arrives in its order, as it was spelled; what does not pass is not there."""
    lines = sent.split(b"\r\n\r\n", 1)[0].split(b"\r\n")
    passing = [name + b": " + value for name, value in fields if role(name)[0] is Role.PASS]
    assert [line for line in lines if line in set(passing)] == passing

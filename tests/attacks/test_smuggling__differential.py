"""Row "smuggling", by search: thousands of broken requests against five real servers behind the gateway. None of them
is ever two requests, or another request than the one authorised, and what the gateway accepts no server reads in
another way. `make differential` searches for longer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.differential import Differential, differential
from tests.support.http2_mutation import http2_mutants
from tests.support.mutation import INNER, LINES, SEEDS, chunked, message, mutants

CASES, HTTP2_CASES = 6_000, 2_000
PEERS = {"nginx", "haproxy", "caddy", "envoy", "aiohttp"}


async def test_no_mutant_is_another_request_behind_us(tmp_path: Path) -> None:
    async with differential(tmp_path) as method:
        tally = await method.run((*SEEDS, *itertools.islice(mutants(1), CASES)), 1)
    assert tally.cases == CASES + len(SEEDS)
    assert tally.refused > CASES / 2
    assert tally.forwarded > CASES / 10
    assert tally.unfinished > CASES / 100
    assert set(tally.compared) == set(tally.instead) == PEERS
    assert min(tally.compared.values()) > CASES / 20
    assert min(tally.instead.values()) > CASES / 20


async def test_no_mutant_over_http_2_is_another_request_as_http_1(tmp_path: Path) -> None:
    async with differential(tmp_path) as method:
        tally = await method.run_http2(itertools.islice(http2_mutants(1), HTTP2_CASES), 1)
    assert tally.cases == HTTP2_CASES
    assert tally.refused > HTTP2_CASES / 4
    assert tally.forwarded > HTTP2_CASES / 10
    assert min(tally.compared.values()) > HTTP2_CASES / 50


_BODIES = [
    b"",
    b"hello",
    INNER,
    b"0\r\n\r\n",
    chunked(b"hello"),
    chunked(INNER),
    b"0\r\n\r\n" + INNER,
    b"5\r\nhello\r\n",
]
_MESSAGES = st.builds(
    lambda method, lines, body: message(method, b"/x", *lines, body=body),
    st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE"]),
    st.lists(st.sampled_from(LINES), max_size=4),
    st.sampled_from(_BODIES),
)


@pytest.fixture
def method(tmp_path: Path) -> Iterator[tuple[asyncio.Runner, Differential]]:
    with asyncio.Runner() as runner:
        entered = differential(tmp_path)
        yield runner, runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


def test_no_framing_that_can_be_put_together_is_another_request(
    method: tuple[asyncio.Runner, Differential],
) -> None:
    runner, search = method

    @given(st.lists(_MESSAGES, min_size=1, max_size=3), st.integers(0, 1 << 30))
    @settings(max_examples=500, deadline=None)
    def hold(messages: list[bytes], seed: int) -> None:
        runner.run(search.run([b"".join(messages)], seed))

    hold()
    assert search.tally.forwarded > 20

"""A short run of each fuzz target of the data plane; tests/support/fuzzing.py tells how to make a long one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.proxy_targets import EXACT, SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    command = [sys.executable, "-m", "tests.support.fuzzing", "tests.fuzz.proxy_targets", name, "2"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-4000:].decode("utf-8", "replace")


def test_every_seed_reaches_the_end_of_its_target() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    for name, target in EXACT.items():
        for seed in SEEDS[name]:
            target(seed)


_LINES = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"Host:b",
            b"Content-Length: 3",
            b"Content-Length: 03",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close, x-a",
            b"Connection: host",
            b"X-A: 1",
            b"X_Forwarded_For: 1",
            b"Expect: 100-continue",
            b"Upgrade: websocket",
            b" folded",
            b"A : b",
            b"",
        ]
    ),
    max_size=8,
)


@given(st.sampled_from([b"GET", b"POST", b"DELETE", b"PUT"]), _LINES, st.sampled_from([b"\r\n", b"\n", b"\r"]))
@settings(max_examples=400, deadline=None)
def test_heads_of_many_shapes(method: bytes, lines: list[bytes], end: bytes) -> None:
    raw = end.join([method + b" /x HTTP/1.1", *lines]) + b"\r\n\r\n"
    TARGETS["request"](raw[: raw.index(b"\r\n\r\n") + 4])


_PARTS = [b"5", b"0", b"a", b"\r\n", b"\n", b";x", b"hello", b" ", b"A: b", b"\r"]


@given(st.lists(st.sampled_from(_PARTS), max_size=14))
@settings(max_examples=600, deadline=None)
def test_chunks_of_many_shapes(parts: list[bytes]) -> None:
    TARGETS["chunks"](b"".join(parts))

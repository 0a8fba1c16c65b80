"""One request is one line in every format, whatever a client sent, and a query's values are in none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.lines import Access, line_of, shown
from gateway.access.settings import Format, QueryPart

PLAIN: dict[str, Any] = {
    "at": 1_800_000_000.25,
    "seconds": 0.0123456,
    "address": "192.0.2.7",
    "identity": "spiffe://fleet.example/node/edge-1",
    "method": b"GET",
    "target": b"/v1/things?token=hush&page=2",
    "protocol": "HTTP/1.1",
    "status": 200,
    "received": 0,
    "sent": 512,
    "route": "api",
    "reason": "granted",
    "decision": "d-1",
    "upstream": "127.0.0.1:80",
    "trace": "",
    "referer": b"https://a.example/?session=hush",
    "agent": b"agent/1",
}
# https://httpd.apache.org/docs/current/logs.html, "Combined Log Format", as its readers split it.
COMBINED = re.compile(rb'(\S+) (\S+) (\S+) \[([^\]]+)\] "([^"]*)" (\d+|-) (\d+|-)(?: "([^"]*)" "([^"]*)")?\n')


def access(**changes: Any) -> Access:
    return Access(**{**PLAIN, **changes})


def test_common() -> None:
    line = line_of(Format.COMMON, QueryPart.MASK)(access())
    assert line == (
        b"192.0.2.7 - spiffe://fleet.example/node/edge-1 [15/Jan/2027:08:00:00 +0000] "
        b'"GET /v1/things?token=***&page=*** HTTP/1.1" 200 512\n'
    )


def test_combined() -> None:
    line = line_of(Format.COMBINED, QueryPart.DROP)(access())
    assert line.endswith(b'"GET /v1/things HTTP/1.1" 200 512 "https://a.example/?session=***" "agent/1"\n')


def test_json() -> None:
    found = json.loads(line_of(Format.JSON, QueryPart.KEEP)(access()))
    assert found["at"] == "2027-01-15T08:00:00.250+00:00"
    assert found["target"] == "/v1/things?token=hush&page=2"
    assert (found["seconds"], found["reason"], found["decision"]) == (0.012346, "granted", "d-1")


def test_what_there_is_not_is_a_dash() -> None:
    nothing = access(address="", identity="", method=b"", target=b"", status=0, sent=0, referer=b"", agent=b"")
    line = line_of(Format.COMBINED, QueryPart.MASK)(nothing)
    assert line == b'- - - [15/Jan/2027:08:00:00 +0000] "- - HTTP/1.1" - - "-" "-"\n'


@pytest.mark.parametrize(
    ("target", "query", "expected"),
    [
        (b"/a", QueryPart.MASK, "/a"),
        (b"/a?", QueryPart.MASK, "/a?***"),
        (b"/a?token", QueryPart.MASK, "/a?***"),
        (b"/a?a=1&b=2=3&c", QueryPart.MASK, "/a?a=***&b=***&***"),
        (b"/a?a=1", QueryPart.DROP, "/a"),
        (b"/a?a=1", QueryPart.KEEP, "/a?a=1"),
        (b"/" + b"x" * 5000, QueryPart.KEEP, "/" + "x" * 2047),
    ],
)
def test_queries(target: bytes, query: QueryPart, expected: str) -> None:
    assert shown(target, query) == expected


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60), st.sampled_from(list(Format)))
def test_nothing_that_a_client_sends_is_more_than_one_line(
    target: bytes, referer: bytes, agent: bytes, form: Format
) -> None:
    line = line_of(form, QueryPart.KEEP)(access(target=target, referer=referer, agent=agent))
    assert line.count(b"\n") == 1
    assert line.isascii()
    if form is Format.JSON:
        assert json.loads(line)["target"] == target.decode("latin-1")
    else:
        assert COMBINED.fullmatch(line), line


@given(st.binary(max_size=40).filter(lambda raw: b"&" not in raw and b"=" not in raw), st.sampled_from(list(Format)))
def test_a_querys_values_are_not_in_it(secret: bytes, form: Format) -> None:
    hidden = b"hidden" + secret.hex().encode()
    line = line_of(form, QueryPart.MASK)(access(target=b"/a?" + hidden + b"&x=" + hidden, referer=b"/?" + hidden))
    assert hidden not in line

"""Outside data is read once, strictly, and every error names its field."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.reasons import Reason

Read = Callable[[Fields], object]


def fields(value: object) -> Fields:
    return Fields(value, "top", Reason.MESSAGE_MALFORMED, unknown=Reason.SETTING_UNKNOWN)


def refusal(value: object, read: Read) -> Fault:
    with pytest.raises(Fault) as caught:
        read(fields(value))
    return caught.value


@pytest.mark.parametrize(
    ("value", "read", "expected"),
    [
        ({"a": "x"}, lambda f: f.text("a"), "x"),
        ({}, lambda f: f.text("a", "d"), "d"),
        ({"a": "y"}, lambda f: f.one_of("a", ("x", "y")), "y"),
        ({"a": False}, lambda f: f.flag("a"), False),
        ({"a": 7}, lambda f: f.integer("a", least=7, most=7), 7),
        ({"a": "250ms"}, lambda f: f.duration("a"), 0.25),
        ({"a": "2h"}, lambda f: f.duration("a"), 7200.0),
        ({"a": "64KiB"}, lambda f: f.size("a"), 65536),
        ({"a": "AAE="}, lambda f: f.base64("a", max_bytes=2), b"\x00\x01"),
        ({"a": ["x"]}, lambda f: f.texts("a"), ("x",)),
        ({"a": [1, 2]}, lambda f: f.integers("a", least=0, most=3, count=2), (1, 2)),
        ({"a": {"b": "c"}}, lambda f: f.mapping("a"), {"b": "c"}),
        ({"a": {"b": 1}}, lambda f: f.section("a").integer("b"), 1),
        ({}, lambda f: f.section("a", optional=True).integer("b", 2), 2),
        ({"a": [{"b": 1}, {"b": 2}]}, lambda f: f.each("a", lambda g: g.integer("b")), (1, 2)),
        ({}, lambda f: f.each("a", lambda g: g.integer("b"), optional=True), ()),
    ],
)
def test_what_is_right_is_read(value: object, read: Read, expected: object) -> None:
    assert read(fields(value)) == expected


@pytest.mark.parametrize(
    ("value", "read", "field"),
    [
        ({}, lambda f: f.text("a"), "top.a"),
        ({"a": None}, lambda f: f.text("a", "d"), "top.a"),
        ({"a": "xx"}, lambda f: f.text("a", max_length=1), "top.a"),
        ({"a": "z"}, lambda f: f.one_of("a", ("x", "y")), "top.a"),
        ({"a": 1}, lambda f: f.flag("a"), "top.a"),
        ({"a": True}, lambda f: f.integer("a"), "top.a"),
        ({"a": 1.0}, lambda f: f.integer("a"), "top.a"),
        ({"a": -1}, lambda f: f.integer("a"), "top.a"),
        ({"a": 5}, lambda f: f.integer("a", most=4), "top.a"),
        ({"a": "1 h"}, lambda f: f.duration("a"), "top.a"),
        ({"a": "\u0661h"}, lambda f: f.duration("a"), "top.a"),
        ({"a": "1h\n"}, lambda f: f.duration("a"), "top.a"),
        ({"a": "1KB"}, lambda f: f.size("a"), "top.a"),
        ({"a": "AAE"}, lambda f: f.base64("a", max_bytes=9), "top.a"),
        ({"a": "AAF="}, lambda f: f.base64("a", max_bytes=9), "top.a"),
        ({"a": "A A="}, lambda f: f.base64("a", max_bytes=9), "top.a"),
        ({"a": "AAAA"}, lambda f: f.base64("a", max_bytes=0), "top.a"),
        ({"a": "x"}, lambda f: f.texts("a"), "top.a"),
        ({"a": ["x", 1]}, lambda f: f.texts("a"), "top.a"),
        ({"a": ["x", "y"]}, lambda f: f.texts("a", most=1), "top.a"),
        ({"a": [1, 2]}, lambda f: f.integers("a", least=0, most=3, count=1), "top.a"),
        ({"a": [True]}, lambda f: f.integers("a", least=0, most=3, count=1), "top.a"),
        ({"a": {"b": 1}}, lambda f: f.mapping("a"), "top.a"),
        ({"a": []}, lambda f: f.section("a"), "top.a"),
        ({"a": {"b": []}}, lambda f: f.section("a").integer("b"), "top.a.b"),
        ({"a": [{"b": 1}, {}]}, lambda f: f.each("a", lambda g: g.integer("b")), "top.a[1].b"),
        ({"a": [{}]}, lambda f: f.each("a", lambda g: 1, most=0), "top.a"),
    ],
)
def test_what_is_wrong_is_refused_by_name(value: object, read: Read, field: str) -> None:
    fault = refusal(value, read)
    assert (fault.reason, fault.field) == (Reason.MESSAGE_MALFORMED, field)


def test_what_nobody_asked_for_is_refused() -> None:
    def read(f: Fields) -> None:
        f.text("a")
        f.finish()

    fault = refusal({"a": "x", "b": "y"}, read)
    assert (fault.reason, fault.field) == (Reason.SETTING_UNKNOWN, "top")
    assert "'b'" in fault.detail


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_an_object_is_an_object(value: object) -> None:
    with pytest.raises(Fault):
        fields(value)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"x":{"a":1,"a":2}}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e999",
        b"[-1e400]",
        b'"\\ud800"',
        b'{"\\uDFFF":1}',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"",
        b"{'a':1}",
        b"[1,]",
        b"9" * 5000,
        b"[" * 100_000,
    ],
)
def test_json_that_parsers_disagree_on_is_refused(raw: bytes) -> None:
    with pytest.raises(Fault) as caught:
        strict_json(raw, "body", Reason.MESSAGE_MALFORMED)
    assert (caught.value.reason, caught.value.field) == (Reason.MESSAGE_MALFORMED, "body")


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert strict_json(b'"\\ud83d\\udd11"', "", Reason.MESSAGE_MALFORMED) == "\U0001f511"


def test_a_message_over_its_cap_is_not_parsed() -> None:
    with pytest.raises(Fault) as caught:
        Fields.from_json(b'{"a":' + b" " * 100 + b"1}", "m", Reason.MESSAGE_MALFORMED, max_bytes=50)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_json_of_ours_comes_back(value: object) -> None:
    assert strict_json(json.dumps(value).encode(), "", Reason.MESSAGE_MALFORMED) == value


@given(st.binary(max_size=100))
def test_base64_comes_back(raw: bytes) -> None:
    assert fields({"a": base64.b64encode(raw).decode()}).base64("a", max_bytes=len(raw)) == raw


@given(st.text(max_size=40))
def test_base64_has_one_spelling(text: str) -> None:
    try:
        raw = fields({"a": text}).base64("a", max_bytes=100)
    except Fault:
        return
    assert base64.b64encode(raw).decode() == text

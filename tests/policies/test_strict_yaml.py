"""The strict part of YAML that a workspace may use."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.lifecycle.strict_yaml import MAX_BYTES, MAX_EVENTS, parse_yaml

TEXT = st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def test_scalars_are_what_they_look_like() -> None:
    raw = b"a: 1\nb: no\nc: 2027-01-31\nd: '1'\ne: true\nf: ~\ng: 0x10\nh: 1.5\ni: 012\nj: |\n  text\n"
    value = parse_yaml(raw, "f").value
    assert value == {
        "a": 1, "b": "no", "c": "2027-01-31", "d": "1", "e": True, "f": None, "g": "0x10", "h": "1.5", "i": "012",
        "j": "text\n",
    }  # fmt: skip


def test_every_value_has_its_line() -> None:
    document = parse_yaml(b"a:\n  - b: 1\n    c:\n      - x\n", "f")
    assert {path: document.line(path) for path in ("a", "a[0].b", "a[0].c", "a[0].c[0]")} == {
        "a": 2, "a[0].b": 2, "a[0].c": 4, "a[0].c[0]": 4,
    }  # fmt: skip
    assert document.line("a[0].missing") == 2


@pytest.mark.parametrize(
    ("raw", "line", "detail"),
    [
        (b"a: &x 1\n", 1, "anchors"),
        (b"a: 1\nb: *x\n", 2, "anchors"),
        (b"a: 1\nc: 2\na: 3\n", 3, "twice"),
        (b"a: !!python/name:os.system x\n", 1, "tags"),
        (b"a: 1\n---\nb: 2\n", 2, "second document"),
        (b"? [a]\n: 1\n", 1, "plain text"),
        (b"[" * 100, 1, "nested"),
        (b"a: b: c\n", 1, "mapping values"),
        (b"a: 1\nb: \xff\n", 2, "UTF-8"),
        (b"a: 1\nb: \x07\n", 2, "special characters"),
        (b"a: 'x\n", 2, "end of stream"),
        (b"#" * (MAX_BYTES + 1), 1, "bytes"),
        (b"[" + b"1," * MAX_EVENTS + b"]", 1, "more than"),
    ],
)
def test_what_is_refused_and_where(raw: bytes, line: int, detail: str) -> None:
    with pytest.raises(Fault, match=detail) as caught:
        parse_yaml(raw, "f.yaml")
    assert (caught.value.reason, caught.value.field) == (Reason.POLICY_DATA_INVALID, f"f.yaml:{line}")


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_json_means_in_it_what_it_means_in_json(value: object) -> None:
    raw = json.dumps(value, ensure_ascii=False).encode()
    assert parse_yaml(raw, "f").value == value


@given(st.binary(max_size=200) | st.text("[]{}:-,&*!|>'\"#?%@` ab\n", max_size=60).map(str.encode))
@settings(max_examples=400, deadline=None)
def test_anything_else_is_a_fault(raw: bytes) -> None:
    fault = _fault_of(raw)
    assert fault is None or (fault.reason is Reason.POLICY_DATA_INVALID and fault.field.startswith("f:"))


def _fault_of(raw: bytes) -> Fault | None:
    try:
        parse_yaml(raw, "f")
    except Fault as fault:
        return fault
    return None

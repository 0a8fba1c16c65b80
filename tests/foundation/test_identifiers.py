"""One spelling per identity."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId, check_name

names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", fullmatch=True)
domains = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)


@given(domains, st.sampled_from(Kind), names)
def test_an_id_comes_back(domain: str, kind: Kind, name: str) -> None:
    made = SpiffeId(domain, kind, name)
    assert SpiffeId.parse(str(made)) == made


@given(st.text(max_size=100))
def test_no_text_has_a_second_spelling(text: str) -> None:
    for spelled in (text, "spiffe://" + text, "spiffe://fleet/node/" + text):
        with contextlib.suppress(Fault):
            assert str(SpiffeId.parse(spelled)) == spelled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://fleet/node",
        "spiffe://fleet/node/",
        "spiffe://fleet/node/a/b",
        "spiffe://fleet//a",
        "spiffe://Fleet/node/a",
        "spiffe://fleet/Node/a",
        "spiffe://fleet/node/A",
        "SPIFFE://fleet/node/a",
        "spiffe://fleet/root/a",
        "spiffe://fleet/node/a?x",
        "spiffe://fleet/node/a#x",
        "spiffe://fleet/node/%61",
        "spiffe://fleet:443/node/a",
        "spiffe://user@fleet/node/a",
        "spiffe://fleet/node/a\n",
        "spiffe://fleet/node/..",
        "spiffe://fleet/node/a..b",
        "spiffe://fleet/node/" + "a" * 64,
        "spiffe://" + "a" * 300 + "/node/a",
        "spiffe://fleet/node/\uff41",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(Fault):
        SpiffeId.parse(text)


@pytest.mark.parametrize("name", ["", "-a", "a-", ".a", "a b", "a/b", "é", "A", "a" * 64, "a\x00"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(Fault) as caught:
        check_name(name, field="begin.node")
    assert caught.value.field == "begin.node"

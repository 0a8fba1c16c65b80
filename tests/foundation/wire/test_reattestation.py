"""PUSH and NEXT: what is written is read back, and nothing else is read."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from foundation.wire.enrolment import qualifying_data as enrolment_data
from foundation.wire.reattestation import MAX_PUSH_BYTES, Next, Push, qualifying_data

short = st.binary(min_size=1, max_size=64)
selections = st.builds(
    PcrSelection,
    st.sampled_from(("sha256", "sha384")),
    st.sets(st.integers(0, 23), min_size=1).map(lambda found: tuple(sorted(found))),
)
pushes = st.builds(
    Push,
    quote_attest=short,
    quote_signature=short,
    pcr_values=st.lists(short, max_size=24).map(tuple),
    event_log=st.binary(max_size=200),
    measured_from=st.integers(0, 2**31),
    measurements=st.binary(max_size=200),
)
answers = st.builds(
    Next,
    nonce=st.binary(min_size=32, max_size=32),
    pcrs=selections,
    interval=st.integers(1, 86_400),
    attested_until=st.integers(0, 2**40),
    measured=st.booleans(),
)


@given(st.one_of(pushes, st.just(Push())))
def test_a_push_is_read_back(message: Push) -> None:
    assert Push.parse(message.encode()) == message


@given(answers)
def test_an_answer_is_read_back(message: Next) -> None:
    assert Next.parse(message.encode()) == message


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_message_or_a_fault(raw: bytes) -> None:
    for kind in (Push, Next):
        with contextlib.suppress(Fault):
            kind.parse(raw)


def _bent(message: Push | Next, **changes: Any) -> bytes:
    document = json.loads(message.encode())
    return json.dumps({**document, **changes}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": "1"},
        {"more": 1},
        {"quote": {"attest": "AA=="}},
        {"quote": {"attest": "AA==", "signature": "", "more": ""}},
        {"quote": {"attest": "AB==", "signature": ""}},  # not canonical
        {"pcr_values": [""] * 25},
        {"pcr_values": ["AAAA" * 30]},
        {"measured_from": -1},
        {"measured_from": 1.0},
        {"measured_from": True},
        {"measurements": "A" * 3_000_000},
        {"event_log": "A" * 800_000},
        {"quote": {"attest": "", "signature": "AA=="}},  # evidence without a quote
        {"quote": {"attest": "", "signature": ""}, "measured_from": 1},
    ],
)
def test_any_other_push_is_refused(changes: dict[str, Any]) -> None:
    good = Push(b"a", b"s", (b"v",))
    with pytest.raises(Fault) as caught:
        Push.parse(_bent(good, **changes))
    assert caught.value.reason is Reason.EVIDENCE_MALFORMED


def test_a_push_is_bounded() -> None:
    with pytest.raises(Fault) as caught:
        Push.parse(b" " * (MAX_PUSH_BYTES + 1))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "AAAA"},
        {"nonce": ""},
        {"interval": 0},
        {"interval": 86_401},
        {"attested_until": -1},
        {"measured": 1},
        {"pcrs": {"bank": "sha1", "indices": [0]}},
        {"pcrs": {"bank": "sha256", "indices": []}},
        {"pcrs": {"bank": "sha256", "indices": [1, 0]}},
        {"pcrs": {"bank": "sha256", "indices": [24]}},
        {"more": None},
    ],
)
def test_any_other_answer_is_refused(changes: dict[str, Any]) -> None:
    good = Next(bytes(32), PcrSelection("sha256", (0,)), 60, 0, False)
    with pytest.raises(Fault) as caught:
        Next.parse(_bent(good, **changes))
    assert caught.value.reason is Reason.MESSAGE_MALFORMED


texts, hashes = st.text(max_size=20), st.binary(max_size=40)
said = st.tuples(texts, texts, hashes, hashes)


@given(said, said)
def test_only_the_same_words_are_signed_alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (qualifying_data(*one) == qualifying_data(*other)) == (one == other)


@given(said, st.sampled_from(("certify", "quote", "possession")), texts, hashes, hashes)
def test_what_is_signed_for_enrolment_is_nothing_here(
    one: tuple[Any, ...], kind: str, purpose: str, session: bytes, first: bytes
) -> None:
    assert qualifying_data(*one) != enrolment_data(kind, purpose, session, one[3], first, one[2])

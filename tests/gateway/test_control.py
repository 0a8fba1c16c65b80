"""What main process and workers say to each other: whole, in order, bounded, and of the right side alone."""

from __future__ import annotations

import contextlib
import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identity import Heartbeat, IdentityChanged, PostureChanged, Revocation, SnapshotNumbers
from foundation.reasons import Reason
from gateway.control import (
    MAX_QUESTION,
    Acknowledged,
    Answered,
    Ask,
    Beat,
    Changed,
    Configure,
    Configured,
    Drain,
    Enforce,
    Failed,
    Forget,
    Frames,
    Listen,
    Load,
    Loaded,
    NotLoaded,
    Renewed,
    SegmentFull,
    encode,
)
from tests.fakes.trust import HARDWARE, record, spiffe

numbers = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 2.0**40)
texts = st.text(max_size=40).filter(lambda text: "\x00" not in text and text.isprintable())
changes = st.one_of(
    st.builds(Revocation, numbers, st.just(spiffe("n1")), st.sampled_from(["", "ab12"]), texts, seconds),
    st.builds(PostureChanged, numbers, st.just(spiffe("n1")), st.just(HARDWARE), seconds),
    st.builds(IdentityChanged, numbers, st.just(record("n1"))),
    st.builds(Heartbeat, seconds, st.builds(SnapshotNumbers, numbers, numbers, numbers, numbers)),
)
orders = st.one_of(
    st.builds(
        Configure,
        settings=texts,
        path=texts,
        number=st.integers(0, 1 << 16),
        of=st.integers(1, 256),
        now=seconds,
        certificate=texts,
        key=texts,
        root=texts,
    ),
    st.builds(Changed, numbers, changes),
    st.builds(Load, numbers, st.binary(max_size=50), st.binary(max_size=100), st.floats(0, 1e10)),
    st.builds(Enforce, numbers, numbers),
    st.builds(Forget, numbers),
    st.builds(Listen, st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)),
    st.builds(Beat, seconds),
    st.just(Renewed()),
    st.builds(Drain, seconds, seconds),
    st.builds(Ask, numbers, st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=50)),
)
reports = st.one_of(
    st.just(Configured()),
    st.builds(Acknowledged, numbers),
    st.builds(Loaded, numbers),
    st.builds(NotLoaded, numbers, texts, texts),
    st.builds(SegmentFull, st.from_regex(r"d-[0-9a-f]{28}", fullmatch=True)),
    st.builds(Answered, numbers, st.binary(max_size=50)),
    st.builds(Failed, texts, texts, texts),
)


def read(frames: Frames, raw: bytes, cuts: list[int]) -> list[Any]:
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    return [message for a, b in itertools.pairwise(places) for message in frames.feed(raw[a:b])]


@given(st.lists(orders, max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_orders_arrive_as_they_were_given_however_they_are_cut(sent: list[Any], cuts: list[int]) -> None:
    assert read(Frames.of_orders(), b"".join(map(encode, sent)), cuts) == sent


@given(st.lists(reports, max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_reports_arrive_as_they_were_given_however_they_are_cut(sent: list[Any], cuts: list[int]) -> None:
    assert read(Frames.of_reports(), b"".join(map(encode, sent)), cuts) == sent


@given(st.lists(reports, min_size=1, max_size=4), st.data())
def test_whoever_takes_over_goes_on_where_a_frame_was_cut(sent: list[Any], data: st.DataObject) -> None:
    raw = b"".join(map(encode, sent))
    at = data.draw(st.integers(0, len(raw)))
    first = Frames.of_reports()
    before = list(first.feed(raw[:at]))
    second = Frames.of_reports(first.begun)
    assert before + list(second.feed(raw[at:])) == sent


@given(st.binary(max_size=300))
def test_whatever_else_comes_is_refused_or_waited_for(raw: bytes) -> None:
    for frames in (Frames.of_orders(), Frames.of_reports()):
        with contextlib.suppress(Fault):  # anything else it raises fails the test
            for message in frames.feed(raw):
                assert encode(message) in raw or isinstance(message, Configure | Changed | NotLoaded | Failed)


@given(orders, reports)
def test_each_side_refuses_what_only_the_other_may_say(order: Any, report: Any) -> None:
    for frames, message in ((Frames.of_reports(), order), (Frames.of_orders(), report)):
        with pytest.raises(Fault):
            list(frames.feed(encode(message)))


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
def test_an_order_that_is_too_long_is_refused_at_its_header(code: int) -> None:
    with pytest.raises(Fault) as caught:
        list(Frames.of_orders().feed(struct.pack(">BI", code, 2**32 - 1)))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


def test_what_is_too_long_is_not_sent() -> None:
    with pytest.raises(Fault) as caught:
        encode(Ask(1, "metrics", bytes(MAX_QUESTION)))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


@pytest.mark.parametrize("value", [b"\x7f\xf0" + bytes(6), b"\x7f\xf8" + bytes(6), b"\xbf\xf0" + bytes(6)])
def test_times_are_finite_and_not_negative(value: bytes) -> None:
    with pytest.raises(Fault):
        list(Frames.of_orders().feed(struct.pack(">BI", 7, 8) + value))

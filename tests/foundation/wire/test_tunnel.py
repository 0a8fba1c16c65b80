"""A tunnel's frames, law by law."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.tunnel import (
    HEADER,
    MAX_CREDIT,
    MAX_DATA,
    MAX_DATAGRAM,
    MAX_DOCUMENT,
    MAX_STREAM,
    STREAMS,
    WIDEST,
    WINDOW,
    Kind,
    TunnelState,
    datagram_cost,
)
from foundation.wire.tunnel_budget import FRAME_WORTH, FRAMES_OF_NODE
from foundation.wire.tunnel_events import (
    CreditReceived,
    DatagramReceived,
    DataReceived,
    Draining,
    Event,
    HelloReceived,
    Pinged,
    Ponged,
    StreamAccepted,
    StreamEnded,
    StreamRefused,
    StreamRequested,
    StreamReset,
)

DOCUMENT = b'{"a":1}'


def frame(kind: int, stream: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, stream, len(body)) + body


def credit(more: int) -> bytes:
    return more.to_bytes(4, "big")


class Pair:
    """Who dials and who accepts, each greeted by the other; what one sends the other has heard."""

    def __init__(self, *, most_streams: int = 16) -> None:
        self.dialer = TunnelState(dials=True, most_streams=most_streams)
        self.acceptor = TunnelState(dials=False, most_streams=most_streams)
        assert self.at_acceptor(self.dialer.hello(DOCUMENT)) == [HelloReceived(DOCUMENT)]
        assert self.at_dialer(self.acceptor.hello(DOCUMENT)) == [HelloReceived(DOCUMENT)]

    def at_dialer(self, data: bytes, now: float = 0.0) -> list[Event]:
        return list(self.dialer.receive(data, now))

    def at_acceptor(self, data: bytes, now: float = 0.0) -> list[Event]:
        return list(self.acceptor.receive(data, now))

    def open(self) -> int:
        """A stream that the acceptor has taken."""
        stream, opened = self.dialer.open(DOCUMENT)
        assert self.at_acceptor(opened) == [StreamRequested(stream, DOCUMENT)]
        assert self.at_dialer(self.acceptor.accept(stream, DOCUMENT)) == [StreamAccepted(stream, DOCUMENT)]
        return stream

    def send(self, stream: int, data: bytes) -> list[Event]:
        """Of the dialer."""
        return self.at_acceptor(self.dialer.data(stream, len(data)) + data)


def refused(state: TunnelState, data: bytes, reason: Reason = Reason.TUNNEL_MALFORMED) -> bool:
    with pytest.raises(Fault) as caught:
        list(state.receive(data, 0.0))
    return caught.value.reason is reason


# --- who may speak of which stream --------------------------------------------------------------------------


def test_hello_comes_first_and_once() -> None:
    for data in (frame(Kind.PING, 0, bytes(8)), frame(Kind.OPEN, 1, DOCUMENT)):
        assert refused(TunnelState(dials=False), data)
    assert refused(Pair().acceptor, frame(Kind.HELLO, 0, DOCUMENT))


def test_numbers_are_odd_or_even_by_side_and_rise() -> None:
    pair = Pair()
    assert [pair.dialer.open(DOCUMENT)[0] for _ in range(3)] == [1, 3, 5]
    assert [pair.acceptor.open(DOCUMENT)[0] for _ in range(3)] == [2, 4, 6]
    assert refused(Pair().acceptor, frame(Kind.OPEN, 2, DOCUMENT))
    assert refused(Pair().dialer, frame(Kind.OPEN, 1, DOCUMENT))
    for second in (1, 3):
        assert refused(Pair().acceptor, frame(Kind.OPEN, 3, DOCUMENT) + frame(Kind.OPEN, second, DOCUMENT))


@pytest.mark.parametrize("kind", [Kind.OPENED, Kind.REFUSED, Kind.DATA, Kind.CREDIT, Kind.END, Kind.RESET])
@pytest.mark.parametrize("stream", [1, 2])
def test_nothing_is_said_of_a_stream_that_never_began(kind: Kind, stream: int) -> None:
    body = {Kind.CREDIT: credit(1), Kind.END: b""}.get(kind, DOCUMENT)
    assert refused(Pair().acceptor, frame(kind, stream, body))


@pytest.mark.parametrize("kind", list(Kind))
def test_a_tunnels_frames_are_of_no_stream_and_a_streams_are_of_one(kind: Kind) -> None:
    body = {Kind.CREDIT: credit(1), Kind.PING: bytes(8), Kind.PONG: bytes(8)}.get(kind, b"")
    body = DOCUMENT if kind in {Kind.OPEN, Kind.OPENED, Kind.REFUSED, Kind.RESET, Kind.DATA} else body
    wrong = 1 if kind in {Kind.HELLO, Kind.PING, Kind.PONG, Kind.DRAIN} else 0
    state = TunnelState(dials=False) if kind is Kind.HELLO else Pair().acceptor
    assert refused(state, frame(kind, wrong, DOCUMENT if kind is Kind.HELLO else body))


def test_who_has_drained_is_asked_for_no_more() -> None:
    pair = Pair()
    assert pair.at_dialer(pair.acceptor.drain()) == [Draining()]
    assert not pair.dialer.can_open
    with pytest.raises(Fault, match="no more streams") as caught:
        pair.dialer.open(DOCUMENT)
    assert caught.value.reason is Reason.STREAM_LIMIT


def test_streams_have_a_bound_on_either_side() -> None:
    pair = Pair(most_streams=STREAMS)
    frames = b"".join(pair.dialer.open(DOCUMENT)[1] for _ in range(STREAMS))
    assert not pair.dialer.can_open
    assert len(pair.at_acceptor(frames)) == STREAMS == pair.acceptor.requested_count
    assert refused(pair.acceptor, frame(Kind.OPEN, 2 * STREAMS + 1, DOCUMENT))


def test_a_stream_that_is_over_makes_room_for_another() -> None:
    pair = Pair(most_streams=1)
    for number in (1, 3, 5):
        stream = pair.open()
        assert stream == number
        assert pair.at_acceptor(pair.dialer.reset(stream, Reason.TUNNEL_LOST)) == [StreamReset(stream, "tunnel_lost")]
        assert (pair.dialer.open_count, pair.acceptor.open_count) == (0, 0)


def test_numbers_are_used_up_rather_than_used_again() -> None:
    state = TunnelState(dials=True)
    state._next = MAX_STREAM
    assert state.open(DOCUMENT)[0] == MAX_STREAM
    assert not state.can_open


# --- answers ------------------------------------------------------------------------------------------------


def test_a_refused_stream_is_over_before_it_began() -> None:
    pair = Pair()
    stream, opened = pair.dialer.open(DOCUMENT)
    pair.at_acceptor(opened)
    assert pair.dialer.credit(stream) == 0
    assert pair.at_dialer(pair.acceptor.refuse(stream, DOCUMENT)) == [StreamRefused(stream, DOCUMENT)]
    assert not pair.dialer.is_open(stream)
    assert not pair.acceptor.is_open(stream)


def test_nothing_may_come_before_the_answer() -> None:
    for kind, body in ((Kind.DATA, b"x"), (Kind.DATAGRAM, b"x"), (Kind.END, b""), (Kind.CREDIT, credit(1))):
        pair = Pair()
        pair.at_acceptor(frame(Kind.OPEN, 1, DOCUMENT))
        assert refused(pair.acceptor, frame(kind, 1, body))


def test_what_was_refused_cannot_send_either() -> None:
    pair = Pair()
    pair.at_acceptor(frame(Kind.OPEN, 1, DOCUMENT))
    pair.acceptor.refuse(1, DOCUMENT)
    assert refused(pair.acceptor, frame(Kind.DATA, 1, b"x"))


def test_only_what_was_asked_is_answered_and_once() -> None:
    for answer in (Kind.OPENED, Kind.REFUSED):
        pair = Pair()
        stream = pair.open()
        assert refused(pair.dialer, frame(answer, stream, DOCUMENT))
        assert refused(pair.acceptor, frame(answer, stream, DOCUMENT))


def test_an_answer_is_given_once_and_only_to_the_other_side() -> None:
    pair = Pair()
    stream = pair.open()
    for state in (pair.dialer, pair.acceptor):
        assert state.accept(stream, DOCUMENT) == state.refuse(stream, DOCUMENT) == b""
        assert state.is_open(stream)
    for unknown in (9, 2):
        assert pair.acceptor.accept(unknown, DOCUMENT) == pair.acceptor.refuse(unknown, DOCUMENT) == b""


def test_an_answer_may_cross_a_reset() -> None:
    for answer in (TunnelState.accept, TunnelState.refuse):
        pair = Pair()
        stream, opened = pair.dialer.open(DOCUMENT)
        pair.at_acceptor(opened)
        late = answer(pair.acceptor, stream, DOCUMENT)
        reset = pair.dialer.reset(stream, Reason.TUNNEL_LOST)
        assert pair.at_dialer(late) == []
        pair.at_acceptor(reset)
        assert (pair.dialer.open_count, pair.acceptor.open_count) == (0, 0)


# --- credit -------------------------------------------------------------------------------------------------


def test_a_stream_carries_its_window_and_not_a_byte_more() -> None:
    pair = Pair()
    stream = pair.open()
    while left := pair.dialer.credit(stream):
        piece = bytes(min(left, MAX_DATA))
        assert pair.send(stream, piece) == [DataReceived(stream, piece)]
    assert refused(pair.acceptor, frame(Kind.DATA, stream, b"x"))


def test_what_was_consumed_may_be_sent_again_in_steps_worth_a_frame() -> None:
    pair = Pair()
    stream = pair.open()
    for _ in range(WINDOW // 2 // MAX_DATA):
        pair.send(stream, bytes(MAX_DATA))
    assert pair.acceptor.consumed(stream, WINDOW // 2 - 1) == b""
    given = pair.acceptor.consumed(stream, 1)
    assert pair.at_dialer(given) == [CreditReceived(stream)]
    assert pair.dialer.credit(stream) == WIDEST


def flow(pair: Pair, stream: int, size: int) -> None:
    """Send so much of `stream`, each piece of which is passed on at once."""
    while size > 0:
        piece = min(size, MAX_DATA, pair.dialer.credit(stream))
        assert piece, "a stream whose bytes are passed on can always go on"
        pair.send(stream, bytes(piece))
        pair.at_dialer(pair.acceptor.consumed(stream, piece))
        size -= piece


def test_a_stream_that_flows_alone_gets_more_room_and_gives_it_back_among_many() -> None:
    pair = Pair(most_streams=64)
    alone = pair.open()
    flow(pair, alone, 4 * WIDEST)
    assert WIDEST // 2 <= pair.dialer.credit(alone) <= WIDEST
    for each in [pair.open() for _ in range(63)]:
        flow(pair, each, 2 * WINDOW)
        assert pair.dialer.credit(each) <= WINDOW
    flow(pair, alone, 4 * WIDEST)
    assert WINDOW // 2 <= pair.dialer.credit(alone) <= WINDOW


def test_room_that_grew_is_held_to_like_any_other() -> None:
    pair = Pair()
    stream = pair.open()
    flow(pair, stream, WINDOW)
    while left := pair.dialer.credit(stream):
        pair.send(stream, bytes(min(left, MAX_DATA)))
    assert refused(pair.acceptor, frame(Kind.DATA, stream, b"x"))


def test_a_datagram_comes_whole_and_costs_its_header_too() -> None:
    pair = Pair()
    stream = pair.open()
    for data in (b"", b"x", bytes(MAX_DATAGRAM)):
        before = pair.dialer.credit(stream)
        assert pair.at_acceptor(pair.dialer.datagram(stream, data)) == [DatagramReceived(stream, data)]
        assert before - pair.dialer.credit(stream) == datagram_cost(len(data)) == len(data) + HEADER.size


def test_a_datagram_without_room_is_lost_and_the_stream_goes_on() -> None:
    pair = Pair()
    stream = pair.open()
    while pair.at_acceptor(pair.dialer.datagram(stream, bytes(MAX_DATAGRAM))):
        pass
    assert pair.dialer.datagram(stream, bytes(MAX_DATAGRAM + 1)) == b""
    assert pair.dialer.is_open(stream)
    assert refused(pair.acceptor, frame(Kind.DATAGRAM, stream, bytes(MAX_DATAGRAM)))


def test_credit_is_more_than_none_and_has_a_bound() -> None:
    for more in (0, MAX_CREDIT, MAX_CREDIT - WINDOW + 1, (1 << 32) - 1):
        pair = Pair()
        assert refused(pair.dialer, frame(Kind.CREDIT, pair.open(), credit(more)))
    pair = Pair()
    stream = pair.open()
    assert pair.at_dialer(frame(Kind.CREDIT, stream, credit(MAX_CREDIT - WINDOW))) == [CreditReceived(stream)]


def test_nothing_is_given_back_of_what_has_ended() -> None:
    pair = Pair()
    stream = pair.open()
    pair.send(stream, bytes(MAX_DATA))
    pair.at_acceptor(pair.dialer.end(stream))
    assert pair.acceptor.consumed(stream, MAX_DATA) == b""


# --- ends ---------------------------------------------------------------------------------------------------


def test_each_side_ends_by_itself_and_then_it_is_over() -> None:
    pair = Pair()
    stream = pair.open()
    assert pair.at_acceptor(pair.dialer.end(stream)) == [StreamEnded(stream)]
    assert pair.dialer.credit(stream) == 0
    answer = pair.acceptor.data(stream, 1) + b"x"
    assert pair.at_dialer(answer) == [DataReceived(stream, b"x")]
    assert pair.at_dialer(pair.acceptor.end(stream)) == [StreamEnded(stream)]
    assert (pair.dialer.open_count, pair.acceptor.open_count) == (0, 0)
    assert pair.dialer.end(stream) == pair.dialer.reset(stream, Reason.TUNNEL_LOST) == b""


def test_there_is_one_end_and_nothing_behind_it() -> None:
    for kind, body in ((Kind.END, b""), (Kind.DATA, b"x"), (Kind.DATAGRAM, b"x")):
        pair = Pair()
        stream = pair.open()
        pair.at_acceptor(pair.dialer.end(stream))
        assert pair.dialer.end(stream) == b""
        assert refused(pair.acceptor, frame(kind, stream, body))


def test_what_is_not_accepted_has_no_end() -> None:
    pair = Pair()
    stream, opened = pair.dialer.open(DOCUMENT)
    pair.at_acceptor(opened)
    assert pair.dialer.end(stream) == pair.acceptor.end(stream) == b""


def test_what_was_under_way_at_a_reset_passes_unheard_up_to_the_credit_given() -> None:
    pair = Pair()
    stream = pair.open()
    under_way = b"".join(frame(Kind.DATA, stream, bytes(MAX_DATA)) for _ in range(WINDOW // MAX_DATA))
    assert pair.acceptor.reset(stream, Reason.TUNNEL_LOST) == frame(Kind.RESET, stream, b"tunnel_lost")
    assert pair.at_acceptor(under_way + frame(Kind.END, stream)) == []
    assert refused(pair.acceptor, frame(Kind.DATA, stream, b"x"))


def test_a_frame_that_is_cut_by_a_reset_is_read_to_its_end_unheard() -> None:
    pair = Pair()
    stream = pair.open()
    whole = frame(Kind.DATA, stream, b"abcdef")
    assert pair.at_acceptor(whole[: HEADER.size + 3]) == [DataReceived(stream, b"abc")]
    pair.acceptor.reset(stream, Reason.TUNNEL_LOST)
    assert pair.at_acceptor(whole[HEADER.size + 3 :] + frame(Kind.PING, 0, bytes(8))) == [Pinged(0)]


# --- bytes --------------------------------------------------------------------------------------------------


def test_signs_of_life_carry_a_number() -> None:
    pair = Pair()
    assert pair.at_acceptor(pair.dialer.ping(7)) == [Pinged(7)]
    assert pair.at_dialer(pair.acceptor.pong(7)) == [Ponged(7)]


@pytest.mark.parametrize("kind", [0, 13, 255])
def test_an_unknown_kind_ends_the_tunnel(kind: int) -> None:
    assert refused(Pair().acceptor, frame(kind, 1, b"x"))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("length", [1 << 17, (1 << 32) - 1])
def test_a_frame_too_long_is_refused_by_its_header_alone(kind: Kind, length: int) -> None:
    pair = Pair()
    state, stream = pair.acceptor, pair.open()
    of = 0 if kind in {Kind.HELLO, Kind.PING, Kind.PONG, Kind.DRAIN} else stream
    state = TunnelState(dials=False) if kind is Kind.HELLO else state
    assert refused(state, HEADER.pack(kind, of, length))


def test_a_document_too_long_is_not_sent() -> None:
    with pytest.raises(Fault) as caught:
        Pair().dialer.open(bytes(MAX_DOCUMENT + 1))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


def test_data_is_given_on_as_it_comes_and_never_held() -> None:
    pair = Pair()
    stream = pair.open()
    whole = frame(Kind.DATA, stream, b"abc")
    assert pair.at_acceptor(whole[: HEADER.size]) == []
    assert [pair.at_acceptor(whole[i : i + 1]) for i in range(HEADER.size, len(whole))] == [
        [DataReceived(stream, piece)] for piece in (b"a", b"b", b"c")
    ]


def conversation() -> bytes:
    """All kinds of frame, as the acceptor hears them."""
    pair = Pair()
    dialer, stream = TunnelState(dials=True), pair.open()
    return b"".join(
        [
            dialer.hello(DOCUMENT),
            frame(Kind.OPEN, stream, DOCUMENT),
            frame(Kind.PING, 0, bytes(8)),
            frame(Kind.OPEN, 3, DOCUMENT),
            frame(Kind.RESET, 3, b"internal"),
            frame(Kind.PONG, 0, bytes(8)),
            frame(Kind.DRAIN, 0),
        ]
    )


@given(st.lists(st.integers(0, 200)))
def test_how_bytes_are_cut_means_nothing(cuts: list[int]) -> None:
    raw = conversation()
    marks = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    state = TunnelState(dials=False)
    pieces = [raw[begin:end] for begin, end in pairwise(marks)]
    cut = [event for piece in pieces for event in state.receive(piece, 0.0)]
    assert cut == list(TunnelState(dials=False).receive(raw, 0.0))
    assert len(cut) == 7


# --- the budget of frames that carry nothing ----------------------------------------------------------------

BURST = FRAMES_OF_NODE * 10


def test_frames_that_carry_nothing_have_a_budget_that_time_fills() -> None:
    pair = Pair()
    ping = frame(Kind.PING, 0, bytes(8))
    assert len(pair.at_acceptor(ping * (BURST - 1))) == BURST - 1
    assert len(pair.at_acceptor(ping * FRAMES_OF_NODE, now=1.0)) == FRAMES_OF_NODE
    with pytest.raises(Fault) as caught:
        pair.at_acceptor(ping * 2, now=1.0)
    assert caught.value.reason is Reason.TUNNEL_FLOODED


def test_what_is_carried_earns_frames() -> None:
    pair = Pair()
    stream, ping = pair.open(), frame(Kind.PING, 0, bytes(8))
    pair.at_acceptor(ping * (BURST - 4))
    pair.send(stream, bytes(MAX_DATA))
    pair.acceptor.data(stream, MAX_DATA)
    pair.at_acceptor(ping * (2 * MAX_DATA // FRAME_WORTH))
    assert refused(pair.acceptor, ping, Reason.TUNNEL_FLOODED)


def test_who_asks_for_a_stream_has_paid_for_its_answer_and_its_end() -> None:
    """A node that answers its gateway's calls, however many, spends nothing."""
    pair = Pair()
    for _ in range(BURST):
        stream, _ = pair.acceptor.open(DOCUMENT)
        pair.at_acceptor(frame(Kind.REFUSED, stream, DOCUMENT))
        stream, _ = pair.acceptor.open(DOCUMENT)
        pair.at_acceptor(frame(Kind.OPENED, stream, DOCUMENT) + frame(Kind.END, stream))
        pair.acceptor.end(stream)
    assert pair.acceptor.open_count == 0


# --- the document -------------------------------------------------------------------------------------------


def test_the_example_in_the_document_is_a_conversation() -> None:
    """docs/protocol.md: every frame of it is right, and at its end the stream is over on both sides."""
    text = Path(__file__).parents[3].joinpath("docs", "protocol.md").read_text()
    lines = re.findall(r"^(node|gateway) +(\w\w) (\w{8}) (\w{8})(?: (.+))?$", text, re.MULTILINE)
    node, gateway = TunnelState(dials=True), TunnelState(dials=False)
    heard: list[str] = []
    node.open(DOCUMENT)
    for side, kind, stream, length, body in lines:
        raw = body.encode() if body.startswith("{") else bytes.fromhex(body)
        assert len(raw) == int(length, 16)
        if kind == "03":
            gateway.accept(1, DOCUMENT)
        if kind == "08":
            (node if side == "node" else gateway).end(1)
        events = (gateway if side == "node" else node).receive(bytes.fromhex(kind + stream + length) + raw, 0.0)
        heard += [type(event).__name__ for event in events]
    assert heard == [
        "HelloReceived",
        "HelloReceived",
        "StreamRequested",
        "StreamAccepted",
        "DataReceived",
        "StreamEnded",
        "StreamEnded",
    ]
    assert node.open_count == gateway.open_count == 0

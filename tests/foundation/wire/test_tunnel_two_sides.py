"""Two sides of a tunnel under any commands, with their bytes cut anyhow: what one means is what the other hears."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.tunnel import (
    HEADER,
    MAX_DATA,
    MAX_DATAGRAM,
    WIDEST,
    WINDOW,
    TunnelState,
    datagram_cost,
)
from foundation.wire.tunnel_events import (
    DatagramReceived,
    DataReceived,
    Event,
    HelloReceived,
    StreamAccepted,
    StreamEnded,
    StreamRefused,
    StreamRequested,
    StreamReset,
)

DOCUMENT = b"{}"
MOST = 3
ANY = st.integers(0, 1 << 16)
sides = st.sampled_from([0, 1])


class Side:
    """One side, with what it was told. `wire` is what it has said and the other has not heard."""

    def __init__(self, *, dials: bool) -> None:
        self.state = TunnelState(dials=dials, most_streams=MOST, frames_per_second=1 << 30)
        self.wire = bytearray(self.state.hello(DOCUMENT))
        self.requested: list[int] = []
        self.over: set[int] = set()
        self.ended_here: set[int] = set()
        self.ended_there: set[int] = set()
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.heard: dict[int, bytearray] = defaultdict(bytearray)
        self.datagrams_sent: dict[int, list[bytes]] = defaultdict(list)
        self.datagrams_heard: dict[int, list[bytes]] = defaultdict(list)
        self.unconsumed: dict[int, int] = defaultdict(int)
        self.greetings = 0

    def hear(self, event: Event) -> None:
        stream = getattr(event, "stream", 0)
        assert stream not in self.over, f"{event} after the end"
        match event:
            case HelloReceived():
                self.greetings += 1
            case StreamRequested():
                self.requested.append(stream)
            case DataReceived(_, data):
                assert data
                assert stream not in self.ended_there
                self.heard[stream] += data
                self.unconsumed[stream] += len(data)
            case DatagramReceived(_, data):
                assert stream not in self.ended_there
                self.datagrams_heard[stream].append(data)
                self.unconsumed[stream] += datagram_cost(len(data))
            case StreamEnded():
                self.ended_there.add(stream)
                self.note_if_over(stream)
            case StreamReset() | StreamRefused():
                self.over.add(stream)
            case StreamAccepted():
                assert self.state.credit(stream) == WINDOW
            case _:
                pass

    def note_if_over(self, stream: int) -> None:
        if stream in self.ended_here and stream in self.ended_there:
            self.over.add(stream)

    def pick(self, number: int, *, sending: bool = False) -> int:
        """One of the streams that are open (and can carry a byte), or 0."""
        found = [each for each in self.state._streams if not sending or self.state.credit(each)]
        return found[number % len(found)] if found else 0


class TwoSides(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sides = (Side(dials=True), Side(dials=False))

    @rule(side=sides)
    def open(self, side: int) -> None:
        mine = self.sides[side]
        if mine.state.can_open:
            mine.wire += mine.state.open(DOCUMENT)[1]

    @rule(side=sides, accepts=st.booleans(), which=ANY)
    def answer(self, side: int, accepts: bool, which: int) -> None:
        mine = self.sides[side]
        if not mine.requested:
            return
        stream = mine.requested.pop(which % len(mine.requested))
        if accepts:
            mine.wire += mine.state.accept(stream, DOCUMENT)
            return
        mine.wire += mine.state.refuse(stream, DOCUMENT)
        mine.over.add(stream)

    @rule(side=sides, which=ANY, size=st.integers(1, MAX_DATA), letter=st.binary(min_size=1, max_size=1))
    def data(self, side: int, which: int, size: int, letter: bytes) -> None:
        mine = self.sides[side]
        stream = mine.pick(which, sending=True)
        if stream:
            data = letter * min(size, mine.state.credit(stream))
            mine.wire += mine.state.data(stream, len(data)) + data
            mine.sent[stream] += data

    @rule(side=sides, which=ANY, size=st.integers(0, MAX_DATAGRAM + 1))
    def datagram(self, side: int, which: int, size: int) -> None:
        mine = self.sides[side]
        stream = mine.pick(which)
        sent = mine.state.datagram(stream, bytes(size))
        mine.wire += sent
        if sent:
            mine.datagrams_sent[stream].append(bytes(size))

    @rule(side=sides, which=ANY, share=st.integers(1, 4))
    def consume(self, side: int, which: int, share: int) -> None:
        mine = self.sides[side]
        stream = mine.pick(which)
        size = -(-mine.unconsumed[stream] // share)
        mine.unconsumed[stream] -= size
        mine.wire += mine.state.consumed(stream, size)

    @rule(side=sides, which=ANY)
    def end(self, side: int, which: int) -> None:
        mine = self.sides[side]
        stream = mine.pick(which)
        if mine.state.is_accepted(stream):
            mine.wire += mine.state.end(stream)
            mine.ended_here.add(stream)
            mine.note_if_over(stream)

    @rule(side=sides, which=ANY)
    def reset(self, side: int, which: int) -> None:
        mine = self.sides[side]
        stream = mine.pick(which)
        if stream:
            mine.wire += mine.state.reset(stream, Reason.TUNNEL_LOST)
            mine.over.add(stream)

    @rule(side=sides, number=st.integers(0, (1 << 64) - 1))
    def ping(self, side: int, number: int) -> None:
        self.sides[side].wire += self.sides[side].state.ping(number)

    @precondition(lambda self: any(side.wire for side in self.sides))
    @rule(side=sides, size=st.integers(1, 1 << 18))
    def deliver(self, side: int, size: int) -> None:
        """So many bytes of one side reach the other."""
        mine, other = self.sides[side], self.sides[1 - side]
        piece = bytes(mine.wire[:size])
        del mine.wire[:size]
        for event in other.state.receive(piece, 0.0):
            other.hear(event)

    @invariant()
    def what_is_heard_is_what_was_sent(self) -> None:
        for mine, other in (self.sides, self.sides[::-1]):
            for stream, heard in mine.heard.items():
                assert other.sent[stream].startswith(heard)
            for stream, datagrams in mine.datagrams_heard.items():
                assert other.datagrams_sent[stream][: len(datagrams)] == datagrams

    @invariant()
    def what_is_held_is_bounded(self) -> None:
        for mine in self.sides:
            assert mine.state.open_count <= 2 * MOST
            assert len(mine.state._head) < HEADER.size + MAX_DATAGRAM
            assert all(size <= WIDEST for size in mine.unconsumed.values())
            for each in mine.state._streams.values():
                assert WINDOW <= each.window <= WIDEST
                assert each.room + each.owed <= each.window

    def teardown(self) -> None:
        """Once all is said and heard, both sides agree."""
        for side in (0, 1):
            self.deliver(side, 1 << 30)
        one, other = self.sides
        assert one.greetings == other.greetings == 1
        assert one.state._streams.keys() == other.state._streams.keys()
        for mine, theirs in (self.sides, self.sides[::-1]):
            for stream in mine.state._streams:
                assert theirs.sent[stream] == mine.heard[stream]
                assert theirs.datagrams_sent[stream] == mine.datagrams_heard[stream]
                assert (stream in mine.ended_there) is (stream in theirs.ended_here)


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)

frames = st.builds(
    lambda kind, stream, body: HEADER.pack(kind, stream, len(body)) + body,
    st.integers(0, 14),
    st.integers(0, 9),
    st.one_of(st.just(b""), st.just(bytes(4)), st.just(bytes(8)), st.binary(max_size=40)),
)


@given(
    st.booleans(),
    st.lists(st.one_of(frames, st.binary(max_size=20))).map(b"".join),
    st.integers(1, 64),
)
def test_any_bytes_are_events_or_wait_or_end_the_tunnel_by_a_fault(dials: bool, raw: bytes, step: int) -> None:
    state = TunnelState(dials=dials, most_streams=MOST)
    state.open(DOCUMENT)
    list(state.receive(TunnelState(dials=not dials).hello(DOCUMENT), 0.0))
    pieces = (raw[at : at + step] for at in range(0, len(raw), step))
    heard, reason = _heard(state, pieces)
    assert reason in {None, Reason.TUNNEL_MALFORMED}
    assert heard <= len(raw)
    assert len(state._head) < HEADER.size + MAX_DATAGRAM


def _heard(state: TunnelState, pieces: Iterable[bytes]) -> tuple[int, Reason | None]:
    """How many bytes were given on, with every stream accepted, and why the tunnel ended."""
    heard = 0
    try:
        for piece in pieces:
            for event in state.receive(piece, 0.0):
                heard += len(getattr(event, "data", b""))
                if isinstance(event, StreamRequested):
                    state.accept(event.stream, DOCUMENT)
    except Fault as fault:
        return heard, fault.reason
    return heard, None

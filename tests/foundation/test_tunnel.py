"""One end of a tunnel at work, over a connection that blocks when the test says so."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from foundation.bucket import BURST_SECONDS
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tunnel import HELD_AT_ONCE, MOST_BUFFERED, QUANTUM, Tunnel
from foundation.wire.streams import StreamRefusal
from foundation.wire.tunnel import HEADER, MAX_DATA, WINDOW, Kind
from foundation.wire.tunnel_budget import DATA_COST, FRAMES_OF_NODE, WORTHWHILE
from tests.fakes.clock import ManualClock
from tests.support.tunnel_ends import DOCUMENT, End, Ends, Pipe, Recorder

BURST = int(FRAMES_OF_NODE * BURST_SECONDS / DATA_COST)
"""Small frames that a gateway bears of a node at once."""


async def test_a_stream_carries_both_ways_and_ends() -> None:
    ends = Ends()
    stream, user = await ends.open()
    theirs = ends.gateway.requests[0]
    stream.write(b"question")
    stream.end()
    theirs.write(b"answer")
    theirs.end()
    await ends.settle()
    assert ends.gateway.users[stream.number].heard == b"question"
    assert (user.heard, user.sent_bytes) == (b"answer", 8)
    assert user.told == ["accepted", "ended"]
    assert ends.gateway.users[stream.number].told == ["ended"]
    assert ends.node.tunnel.streams == ends.gateway.tunnel.streams == ()


async def test_what_is_written_before_the_answer_leaves_after_it() -> None:
    ends = Ends()
    ends.gateway.answers = False
    stream, user = await ends.open()
    stream.write(b"early")
    stream.end()
    await ends.settle()
    assert (stream.backlog, user.sent_bytes) == (5, 0)
    theirs = ends.gateway.accept(ends.gateway.requests[0])
    await ends.settle()
    assert (bytes(theirs.heard), theirs.told) == (b"early", ["ended"])
    assert (stream.backlog, user.sent_bytes) == (0, 5)


async def test_an_end_before_the_answer_comes_after_it() -> None:
    ends = Ends()
    ends.gateway.answers = False
    stream, _ = await ends.open()
    stream.end()
    await ends.settle()
    theirs = ends.gateway.accept(ends.gateway.requests[0])
    await ends.settle()
    assert theirs.told == ["ended"]


async def test_a_refused_stream_is_told_and_forgotten() -> None:
    ends = Ends()
    ends.gateway.answers = False
    stream, user = await ends.open()
    stream.write(b"never leaves")
    ends.gateway.requests[0].refuse(StreamRefusal(Reason.SERVICE_NOT_OFFERED).encode())
    await ends.settle()
    assert user.told == ["refused service_not_offered"]
    assert ends.node.tunnel.streams == ends.gateway.tunnel.streams == ()
    assert not stream.is_open


async def test_more_streams_than_this_side_wants_are_refused_and_the_tunnel_stands() -> None:
    ends = Ends()
    ends.gateway = End(dials=False, most_streams=1)
    (_, first), (_, second) = await ends.open(), await ends.open()
    assert (first.told, second.told) == (["accepted"], ["refused stream_limit"])
    ends.gateway.requests[0].reset(Reason.TUNNEL_LOST)
    await ends.settle()
    assert (await ends.open())[1].told == ["accepted"]


async def test_a_reset_is_told_to_the_other_side_alone() -> None:
    ends = Ends()
    stream, user = await ends.open()
    stream.write(bytes(WINDOW + 1))
    stream.reset(Reason.CUT_BY_REVOCATION)
    stream.write(b"behind it")
    await ends.settle()
    assert ends.gateway.users[stream.number].told == ["over cut_by_revocation"]
    assert user.told == ["accepted"]
    assert (stream.backlog, ends.node.tunnel.buffered) == (0, 0)


async def test_writing_waits_for_credit_and_the_writer_is_told_when_it_left() -> None:
    ends = Ends()
    stream, user = await ends.open()
    data = bytes(range(256)) * (WINDOW * 3 // 256)
    stream.write(data)
    await ends.settle()
    theirs = ends.gateway.users[stream.number]
    assert (len(theirs.heard), user.sent_bytes, stream.backlog) == (WINDOW, WINDOW, 2 * WINDOW)
    while len(theirs.heard) < len(data):
        ends.gateway.requests[0].consumed(WINDOW // 2)
        await ends.settle()
    assert theirs.heard == data
    assert (user.sent_bytes, stream.backlog) == (len(data), 0)


async def test_behind_its_end_and_empty_nothing_is_sent() -> None:
    ends = Ends()
    stream, _ = await ends.open()
    stream.write(b"")
    stream.end()
    stream.write(b"late")
    await ends.settle()
    assert (ends.gateway.users[stream.number].heard, stream.backlog) == (b"", 0)


async def test_a_blocked_connection_gets_no_more_than_it_takes() -> None:
    ends = Ends(most=1000)
    streams = [(await ends.open())[0] for _ in range(10)]
    for stream in streams:
        for _ in range(10):
            stream.write(bytes(QUANTUM // 4))
    await asyncio.sleep(0)
    assert ends.node.tunnel.is_blocked
    assert len(ends.node.pipe.waiting) <= 2 * QUANTUM + 100
    waiting = sum(stream.backlog for stream in streams)
    assert waiting + len(ends.node.pipe.waiting) >= 10 * 10 * QUANTUM // 4
    assert ends.node.tunnel.buffered == waiting + len(ends.node.pipe.waiting)


async def test_who_waits_is_served_in_turn() -> None:
    """No stream is ever ahead of another by more than a turn, though some have far more to send."""
    ends = Ends(most=1000)
    streams = [(await ends.open())[0] for _ in range(8)]
    for number, stream in enumerate(streams):
        for _ in range(4):
            stream.write(bytes(QUANTUM if number % 2 else QUANTUM // 2))
    for _ in range(40):
        await asyncio.sleep(0)
        ends.gateway.tunnel.received(ends.node.pipe.flow())
        heard = [len(user.heard) for user in ends.gateway.users.values()]
        served = [size for size, stream in zip(heard, streams, strict=True) if stream.backlog]
        assert not served or max(served) - min(served) <= QUANTUM
    await ends.settle()
    assert sum(len(user.heard) for user in ends.gateway.users.values()) == 4 * 4 * QUANTUM * 3 // 2


async def test_a_writer_that_is_told_writes_on_and_still_has_one_place_in_the_row() -> None:
    """As a node's agent does: it reads its local connection again as soon as something has left."""
    ends = Ends(most=1000)
    streams = [await ends.open() for _ in range(3)]
    for stream, user in streams:
        user.sent = lambda size, stream=stream: stream.write(bytes(size))  # type: ignore[method-assign,misc]
    await asyncio.sleep(0)
    ends.node.tunnel.blocked()
    for stream, _ in streams:
        stream.write(bytes(4 * QUANTUM))
    for _ in range(40):
        await asyncio.sleep(0)
        places = Counter(stream.number for stream in ends.node.tunnel._waiting)
        assert set(places.values()) <= {1}
        ends.gateway.tunnel.received(ends.node.pipe.flow())
        for theirs in ends.gateway.requests:
            theirs.consumed(QUANTUM)
        ends.node.tunnel.received(ends.gateway.pipe.flow())
        heard = [len(user.heard) for user in ends.gateway.users.values()]
        assert max(heard) - min(heard) <= 2 * QUANTUM
    assert min(heard) > 4 * QUANTUM


async def test_who_comes_later_waits_behind_those_that_wait() -> None:
    ends = Ends(most=1000)
    first, second = (await ends.open())[0], (await ends.open())[0]
    for _ in range(3):
        first.write(bytes(QUANTUM))
    await asyncio.sleep(0)
    ends.node.pipe.most = 1 << 30
    ends.node.tunnel.is_blocked = False
    second.write(b"later")
    assert second.backlog == 5


async def test_what_was_written_in_one_turn_leaves_in_one_frame() -> None:
    ends = Ends()
    stream, user = await ends.open()
    for _ in range(5):
        stream.write(b"x")
    assert ends.node.pipe.waiting == b""
    await asyncio.sleep(0)
    assert ends.node.pipe.waiting == HEADER.pack(Kind.DATA, stream.number, 5) + b"xxxxx"
    assert user.sent_bytes == 5


async def test_pieces_are_cut_and_joined_at_frames_and_turns_alone() -> None:
    ends = Ends()
    stream, _ = await ends.open()
    pieces = [bytes([number]) * (1000 * number) for number in range(1, 20)]
    for piece in pieces:
        stream.write(piece)
    await ends.settle()
    assert ends.gateway.users[stream.number].heard == b"".join(pieces)
    assert ends.node.tunnel.state.credit(stream.number) == WINDOW - 190_000


async def test_the_end_is_said_before_the_writer_hears_that_all_has_left() -> None:
    """Who closes once all has left, and breaks off what the other side still sends, has said a clean end."""
    ends = Ends()
    stream, user = await ends.open()
    user.sent = lambda size: stream.reset(Reason.STREAM_ABORTED)  # type: ignore[method-assign]
    stream.write(b"all of it")
    stream.end()
    await ends.settle()
    theirs = ends.gateway.users[stream.number]
    assert (bytes(theirs.heard), theirs.told) == (b"all of it", ["ended", "over stream_aborted"])


async def test_a_program_that_writes_little_and_often_is_slowed_down_and_never_cut_off() -> None:
    """More small frames than a gateway bears of a node: they become fewer, and longer."""
    ends = Ends()
    streams = [(await ends.open())[0] for _ in range(20)]
    writes = 0
    while writes < 4 * BURST:
        for stream in streams:
            stream.write(b"k")
            writes += 1
        await ends.settle()  # raises should the gateway refuse
    held = sum(stream.backlog for stream in streams)
    heard = sum(len(user.heard) for user in ends.gateway.users.values())
    assert 0 < held == writes - heard
    for end in (ends.node, ends.gateway):
        end.clock.advance(BURST_SECONDS)
    ends.node.tunnel.ping()
    await ends.settle()
    ends.node.tunnel._release()
    await ends.settle()
    assert sum(len(user.heard) for user in ends.gateway.users.values()) == writes


async def test_who_has_much_to_send_is_not_held_up_by_those_with_little() -> None:
    ends = Ends()
    small, large = (await ends.open())[0], (await ends.open())[0]
    while not small.backlog:
        small.write(b"k")
        await asyncio.sleep(0)
        ends.gateway.tunnel.received(ends.node.pipe.flow())
    large.write(bytes(WORTHWHILE))
    await ends.settle()
    assert (small.backlog, large.backlog) == (1, 0)
    small.write(bytes(WORTHWHILE))
    await ends.settle()
    assert small.backlog == 0


async def test_what_is_held_comes_before_the_end_of_its_stream() -> None:
    """And a stream that is half closed is answered as ever."""
    ends = Ends()
    first, _ = await ends.open()
    while not first.backlog:
        first.write(b"k")
        await ends.settle()
    stream, user = await ends.open()
    stream.write(b"question")
    stream.end()
    await ends.settle()
    theirs = ends.gateway.users[stream.number]
    assert (bytes(theirs.heard), theirs.told) == (b"", [])
    for end in (ends.node, ends.gateway):
        end.clock.advance(1)
    ends.node.tunnel._release()
    await ends.settle()
    assert (bytes(theirs.heard), theirs.told) == (b"question", ["ended"])
    ends.gateway.requests[1].write(b"answer")
    ends.gateway.requests[1].end()
    await ends.settle()
    assert (bytes(user.heard), user.told) == (b"answer", ["accepted", "ended"])


async def test_those_that_are_held_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them are no work while nothing is borne."""
    ends = Ends()
    streams = [(await ends.open())[0] for _ in range(2 * HELD_AT_ONCE)]
    while not streams[0].backlog:
        streams[0].write(b"k")
        await ends.settle()
    for stream in streams:
        stream.write(b"k")
    await ends.settle()
    asked = 0
    allows = ends.node.tunnel.state.allows

    def counted(now: float, *, needed: bool = False) -> bool:
        nonlocal asked
        asked += 1
        return allows(now, needed=needed)

    monkeypatch.setattr(ends.node.tunnel.state, "allows", counted)
    ends.node.tunnel._release()
    assert asked == HELD_AT_ONCE
    ends.node.clock.advance(1)
    for _ in range(2):
        ends.node.tunnel._release()
    assert not any(stream.backlog for stream in streams)


async def test_empty_datagrams_beyond_what_is_borne_are_dropped_and_the_tunnel_stands() -> None:
    ends = Ends()
    stream, _ = await ends.open()
    sent = 0
    for _ in range(2 * FRAMES_OF_NODE):
        for _ in range(10):
            sent += stream.send_datagram(b"")
        await ends.settle()
        ends.gateway.requests[0].consumed(0)
    assert len(ends.gateway.users[stream.number].datagrams) == sent < FRAMES_OF_NODE * BURST_SECONDS
    for end in (ends.node, ends.gateway):
        end.clock.advance(1)
    assert stream.send_datagram(b"")


async def test_more_streams_than_are_borne_are_refused_here_and_the_tunnel_stands() -> None:
    ends = Ends()

    async def open_and_reset() -> None:
        for _ in range(FRAMES_OF_NODE * 10):
            (await ends.open())[0].reset(Reason.TUNNEL_LOST)

    with pytest.raises(Fault, match="in a short time") as caught:
        await open_and_reset()
    assert caught.value.reason is Reason.STREAM_LIMIT
    ends.node.clock.advance(5)
    ends.gateway.clock.advance(5)
    assert (await ends.open())[1].told == ["accepted"]


async def test_a_piece_longer_than_a_frame_is_several() -> None:
    ends = Ends()
    stream, _ = await ends.open()
    stream.write(bytes(2 * MAX_DATA + 1))
    await ends.settle()
    assert len(ends.gateway.users[stream.number].heard) == 2 * MAX_DATA + 1


async def test_datagrams_are_dropped_rather_than_kept() -> None:
    ends = Ends(most=1000)
    stream, _ = await ends.open()
    assert stream.send_datagram(b"")
    assert stream.send_datagram(bytes(2000))
    await asyncio.sleep(0)
    assert not stream.send_datagram(b"while the connection is blocked")
    await ends.settle()
    assert ends.gateway.users[stream.number].datagrams == [b"", bytes(2000)]
    stream.reset(Reason.TUNNEL_LOST)
    assert not stream.send_datagram(b"over")


async def test_when_the_connection_is_lost_each_is_told_once() -> None:
    ends = Ends()
    (stream, user), (_, other) = await ends.open(), await ends.open()
    stream.write(bytes(2 * WINDOW))
    for _ in range(2):
        ends.node.tunnel.lost()
    assert user.told == other.told == ["accepted", "over tunnel_lost"]
    assert not stream.is_open
    stream.write(b"too late")
    with pytest.raises(Fault) as caught:
        ends.node.tunnel.open(Recorder(), DOCUMENT)
    assert caught.value.reason is Reason.TUNNEL_LOST
    await asyncio.sleep(0)


async def test_what_comes_after_the_loss_is_not_heard() -> None:
    ends = Ends()
    await ends.open()
    ends.gateway.tunnel.lost()
    ends.gateway.tunnel.received(HEADER.pack(Kind.OPEN, 3, 2) + DOCUMENT)
    assert len(ends.gateway.requests) == 1


async def test_what_is_said_before_the_connection_stands_is_said_then() -> None:
    end, pipe = End(dials=True), Pipe()
    tunnel = Tunnel(end, ManualClock(), dials=True)
    tunnel.hello(DOCUMENT)
    await asyncio.sleep(0)
    tunnel.made(pipe)
    assert pipe.waiting == HEADER.pack(Kind.HELLO, 0, 2) + DOCUMENT


async def test_a_sign_of_life_is_answered_and_being_heard_is_noted() -> None:
    ends = Ends()
    await ends.settle()
    ends.gateway.clock.advance(5)
    ends.node.clock.advance(7)
    ends.node.tunnel.ping()
    await ends.settle()
    assert ends.gateway.tunnel.heard_at == 5
    assert ends.node.tunnel.heard_at == 7


async def test_draining_is_told() -> None:
    ends = Ends()
    ends.gateway.tunnel.drain()
    await ends.settle()
    assert ends.node.drained == 1
    with pytest.raises(Fault):
        ends.node.tunnel.open(Recorder(), DOCUMENT)


async def test_who_never_reads_what_it_asks_for_is_cut_off() -> None:
    """Answers pile up for a connection that takes nothing: it is aborted before they are many."""
    ends = Ends()
    await ends.settle()
    ends.gateway.pipe.most = 1000
    ping = HEADER.pack(Kind.PING, 0, 8) + bytes(8)
    for _ in range(2 * MOST_BUFFERED // (len(ping) * 1000)):
        ends.gateway.clock.advance(1)
        ends.gateway.tunnel.received(ping * 1000)
        await asyncio.sleep(0)
        if ends.gateway.pipe.is_aborted:
            break
    assert ends.gateway.pipe.is_aborted
    assert len(ends.gateway.pipe.waiting) < MOST_BUFFERED + 1000 * len(ping) + 1

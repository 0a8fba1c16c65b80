"""Row "tunnel floods" (rapid reset, CVE-2023-44487, and the SETTINGS, PING and empty-frame floods of CVE-2019-9511 to
-9518, in our own frames): what makes work and carries nothing has a budget per tunnel, lengths are judged before a byte
is kept, and who never reads what it asks for is cut off. The neighbour's tunnel is served all the while."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tunnel import MOST_BUFFERED
from foundation.wire.tunnel import HEADER, MAX_CREDIT, MAX_DATA, WINDOW, Kind, TunnelState
from foundation.wire.tunnel_budget import FRAMES_OF_NODE
from tests.support.tunnel_ends import DOCUMENT, End, Ends

MOST = 30_000  # frames after which a test gives up: no budget held
SECONDS = 40  # for which a flood at the allowed rate is borne


def frame(kind: Kind, stream: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, stream, len(body)) + body


def pings() -> Iterator[bytes]:
    return itertools.repeat(frame(Kind.PING, 0, bytes(8)))


def pongs() -> Iterator[bytes]:
    return itertools.repeat(frame(Kind.PONG, 0, bytes(8)))


def drains() -> Iterator[bytes]:
    return itertools.repeat(frame(Kind.DRAIN, 0))


def rapid_resets() -> Iterator[bytes]:
    for stream in itertools.count(1, 2):
        yield frame(Kind.OPEN, stream, DOCUMENT) + frame(Kind.RESET, stream, b"internal")


def late_frames() -> Iterator[bytes]:
    """Of a stream that is over."""
    yield frame(Kind.OPEN, 1, DOCUMENT) + frame(Kind.RESET, 1, b"internal")
    yield from itertools.cycle([frame(Kind.CREDIT, 1, bytes(4)), frame(Kind.END, 1), frame(Kind.RESET, 1, b"internal")])


def crumbs_of_credit() -> Iterator[bytes]:
    yield frame(Kind.OPEN, 1, DOCUMENT)
    yield from itertools.repeat(frame(Kind.CREDIT, 1, (1).to_bytes(4, "big")))


def empty_datagrams() -> Iterator[bytes]:
    yield frame(Kind.OPEN, 1, DOCUMENT)
    yield from itertools.repeat(frame(Kind.DATAGRAM, 1))


def crumbs_of_data() -> Iterator[bytes]:
    """All of it within the credit of its stream."""
    yield frame(Kind.OPEN, 1, DOCUMENT)
    yield from itertools.repeat(frame(Kind.DATA, 1, b"x") * 10)


def crumbs_of_many_streams() -> Iterator[bytes]:
    streams = range(1, 201, 2)
    yield b"".join(frame(Kind.OPEN, stream, DOCUMENT) for stream in streams)
    for stream in itertools.cycle(streams):
        yield frame(Kind.DATA, stream, b"xy") * 10


def crumbs_of_datagrams() -> Iterator[bytes]:
    yield frame(Kind.OPEN, 1, DOCUMENT)
    yield from itertools.repeat(frame(Kind.DATAGRAM, 1, b"x") * 10)


def sent_until_refused(end: End, pieces: Iterable[bytes]) -> Reason:
    """Why `end` ended its tunnel. Fails when it does not."""
    try:
        for piece in itertools.islice(pieces, MOST):
            end.tunnel.received(piece)
            end.pipe.flow()
            end.clock.advance(1e-6)
    except Fault as fault:
        return fault.reason
    raise AssertionError("no budget held")


Flood = Callable[[], Iterator[bytes]]
FLOODS: list[Flood] = [
    pings,
    pongs,
    drains,
    rapid_resets,
    late_frames,
    crumbs_of_credit,
    crumbs_of_data,
    crumbs_of_many_streams,
    crumbs_of_datagrams,
    empty_datagrams,
]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
async def test_a_flood_ends_its_tunnel_and_no_other(flood: Flood) -> None:
    attacked, neighbour = End(dials=False), Ends()
    attacked.tunnel.received(frame(Kind.HELLO, 0, DOCUMENT))
    stream, _ = await neighbour.open()
    assert sent_until_refused(attacked, flood()) is Reason.TUNNEL_FLOODED
    stream.write(b"served")
    await neighbour.settle()
    assert neighbour.gateway.users[stream.number].heard == b"served"


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
async def test_what_a_slow_flood_may_cost_is_what_is_allowed(flood: Flood) -> None:
    """At half the rate it goes on for as long as it likes: a node is not cut off for being busy."""
    end, frames = End(dials=False), flood()
    end.tunnel.received(frame(Kind.HELLO, 0, DOCUMENT))
    for _ in range(SECONDS):
        end.clock.advance(1)
        end.tunnel.received(b"".join(itertools.islice(frames, FRAMES_OF_NODE // 2)))
        await asyncio.sleep(0)
        end.pipe.flow()


async def test_streams_that_are_asked_for_and_never_used_have_a_bound() -> None:
    end = End(dials=False)
    end.answers = False
    end.tunnel.received(frame(Kind.HELLO, 0, DOCUMENT))
    opens = [frame(Kind.OPEN, stream, DOCUMENT) for stream in range(1, 2 * MOST, 2)]
    assert sent_until_refused(end, opens) is Reason.TUNNEL_MALFORMED
    assert end.tunnel.state.open_count == 4096


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.OPEN, Kind.OPENED, Kind.REFUSED, Kind.DATAGRAM, Kind.DATA])
async def test_a_giant_length_is_refused_before_a_byte_of_its_body(kind: Kind) -> None:
    end = End(dials=False)
    of = 0 if kind is Kind.HELLO else 1
    if of:
        end.tunnel.received(frame(Kind.HELLO, 0, DOCUMENT))
    header = HEADER.pack(kind, of, (1 << 32) - 1)
    assert sent_until_refused(end, (bytes([octet]) for octet in header)) is Reason.TUNNEL_MALFORMED


async def test_a_reader_that_is_never_waited_for_sends_its_window_and_no_more() -> None:
    """What is not consumed here may not come: memory is bounded by what was allowed."""
    end = End(dials=False)
    end.tunnel.received(frame(Kind.HELLO, 0, DOCUMENT) + frame(Kind.OPEN, 1, DOCUMENT))
    pieces = itertools.repeat(frame(Kind.DATA, 1, bytes(MAX_DATA)))
    assert sent_until_refused(end, pieces) is Reason.TUNNEL_MALFORMED
    assert len(end.users[1].heard) == WINDOW


def test_credit_cannot_grow_over_its_bound() -> None:
    state = TunnelState(dials=True)
    _, _ = state.open(DOCUMENT)
    opened = frame(Kind.HELLO, 0, DOCUMENT) + frame(Kind.OPENED, 1, DOCUMENT)
    list(state.receive(opened + frame(Kind.CREDIT, 1, (MAX_CREDIT - WINDOW).to_bytes(4, "big")), 0.0))
    with pytest.raises(Fault) as caught:
        list(state.receive(frame(Kind.CREDIT, 1, (1).to_bytes(4, "big")), 0.0))
    assert caught.value.reason is Reason.TUNNEL_MALFORMED


async def test_who_never_reads_the_answers_is_cut_off() -> None:
    end = End(dials=False, most=1000)
    end.tunnel.received(frame(Kind.HELLO, 0, DOCUMENT))
    ping = frame(Kind.PING, 0, bytes(8))
    for _ in range(2 * MOST_BUFFERED // (len(ping) * FRAMES_OF_NODE)):
        end.clock.advance(1)
        end.tunnel.received(ping * FRAMES_OF_NODE)
        await asyncio.sleep(0)
        if end.pipe.is_aborted:
            return
    raise AssertionError(f"{len(end.pipe.waiting)} bytes wait for who never reads")

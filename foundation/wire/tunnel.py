"""A tunnel's frames: many streams over one connection, each with flow control of its own. Bytes to events and back.

Laws held here:
- who dials opens streams of odd numbers, who accepts opens even ones; a number is used once, and numbers rise;
- nothing of a stream is sent before the other side has accepted it: whoever is refused has not sent a byte;
- nobody sends more of a stream than the other side gave credit for, so what a side holds for a stream is bounded by
  what it allowed;
- what breaks these laws, an unknown kind, a frame that is longer than its kind allows: each ends the tunnel. Only
  frames of a stream that has just ended pass unheard, for the other side cannot know yet, and they are counted too;
- frames that make work and carry nothing, or next to nothing, have a budget, which fills with time and with every byte
  that is carried (rapid reset, CVE-2023-44487, and its kin). Whoever asks for a stream pays for its end and its answer
  too: there is one of each. What we send ourselves is reckoned alike (`foundation.wire.tunnel_budget`).

A frame is one octet of kind, four of stream and four of length (big-endian), then the body. The pieces of DATA are
given on as they come: no frame of it is ever held. Bodies of HELLO, OPEN, OPENED and REFUSED are JSON, which
`foundation.wire.streams` reads. docs/protocol.md tells it for other implementations.

Knows no socket and no clock: `foundation.tunnel` is the shell.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.tunnel_budget import DATA_COST, FRAMES_OF_GATEWAY, FRAMES_OF_NODE, LOOK, OwnSpending, Spending
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

HEADER = struct.Struct(">BII")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
PROTOCOL = "sallyport-tunnel/1"
"""The tunnel of a node, as ALPN (RFC 7301) names it."""
RELAY_PROTOCOL = "sallyport-relay/1"
"""What one gateway joins to another's tunnels, as ALPN names it."""
MAX_DATA = 64 << 10
MAX_DATAGRAM = 65_507  # of UDP over IPv4
MAX_DOCUMENT = 16 << 10
MAX_CREDIT = (1 << 31) - 1
MAX_STREAM = (1 << 32) - 1
WINDOW = 256 << 10
"""How much of a stream may be sent before the other side gives more, in bytes, when it is opened."""
WIDEST = 1 << 20
"""How much of a stream that flows may be under way, while few flow beside it. On busy machines it takes a while until
credit comes back over all hops, and a stream carries no more than a window in that time."""
SHARED = 8 << 20
"""What a tunnel's streams share of that: with more of them, each has less, down to `WINDOW`."""
STREAMS = 4096
"""How many streams of each side may be open at once; a relay may carry more, where both sides say so."""


class Kind(IntEnum):
    """What a frame is. A kind is never given another meaning, only new ones are added."""

    HELLO = 1
    OPEN = 2
    OPENED = 3
    REFUSED = 4
    DATA = 5
    DATAGRAM = 6
    CREDIT = 7
    END = 8
    RESET = 9
    PING = 10
    PONG = 11
    DRAIN = 12


_BODY = {  # least and most bytes
    Kind.HELLO: (2, MAX_DOCUMENT),
    Kind.OPEN: (2, MAX_DOCUMENT),
    Kind.OPENED: (2, MAX_DOCUMENT),
    Kind.REFUSED: (2, MAX_DOCUMENT),
    Kind.DATA: (1, MAX_DATA),
    Kind.DATAGRAM: (0, MAX_DATAGRAM),
    Kind.CREDIT: (4, 4),
    Kind.END: (0, 0),
    Kind.RESET: (1, 64),
    Kind.PING: (8, 8),
    Kind.PONG: (8, 8),
    Kind.DRAIN: (0, 0),
}
_COST = {  # in frames that carry nothing
    Kind.OPEN: 2,
    Kind.CREDIT: 1,
    Kind.PING: 1,
    Kind.PONG: 1,
    Kind.DRAIN: 1,
}
_EMPTY = 1  # a datagram
_OF_TUNNEL = frozenset({Kind.HELLO, Kind.PING, Kind.PONG, Kind.DRAIN})


class _Stream:
    """`credit` is what we may send, `room` what the other side may; `window` is that and all that came and is not given
    back."""

    __slots__ = ("accepted", "credit", "ended_here", "ended_there", "ours", "owed", "room", "window")

    def __init__(self, *, ours: bool) -> None:
        self.ours = ours
        self.accepted = False
        self.credit = WINDOW
        self.room = WINDOW
        self.window = WINDOW
        self.owed = 0  # consumed here, and not yet given back
        self.ended_here = self.ended_there = False


class TunnelState:
    """One side of one tunnel. Commands give the bytes to send; `receive` gives events."""

    def __init__(
        self,
        *,
        dials: bool,
        most_streams: int = STREAMS,
        frames_per_second: int = FRAMES_OF_NODE,
        own_frames_per_second: int = FRAMES_OF_GATEWAY,
        now: float = 0.0,
    ) -> None:
        """`dials` says which side this is; `most_streams` bounds those of ours that are open, and those of the other
        side where it is more than `STREAMS`; `frames_per_second` bounds what may come that carries nothing, and
        `own_frames_per_second` is what the other side bears; `now` is monotonic seconds."""
        self._dials = dials
        self._next = 1 if dials else 2
        self._newest_there = 0
        self._most = most_streams
        self._most_theirs = max(most_streams, STREAMS)
        self._streams: dict[int, _Stream] = {}
        self._ours = self._theirs = 0
        self._greeted = False
        self._draining_there = False
        self._head = bytearray()  # of a frame that is not whole, with its body unless it is DATA
        self._left = 0  # bytes of a DATA frame that are still to come
        self._of = 0  # the stream that they are of
        self._strays = 0  # what may still come of streams that ended here
        self._spent_there = Spending(frames_per_second, now)
        self._spent_here = OwnSpending(own_frames_per_second, now)
        self._now = now

    # --- questions ------------------------------------------------------------------------------------

    @property
    def open_count(self) -> int:
        """Streams that are not over, those that wait for an answer among them."""
        return len(self._streams)

    @property
    def requested_count(self) -> int:
        """Of these, those that the other side asked for."""
        return self._theirs

    @property
    def can_open(self) -> bool:
        """Whether one more stream of ours would be listened to."""
        return not self._draining_there and self._ours < self._most and self._next <= MAX_STREAM

    def credit(self, stream: int) -> int:
        """How many bytes of `stream` may be sent now; 0 when it is over or not accepted."""
        found = self._streams.get(stream)
        return found.credit if found is not None and found.accepted and not found.ended_here else 0

    def is_open(self, stream: int) -> bool:
        return stream in self._streams

    def is_accepted(self, stream: int) -> bool:
        """Whether `stream` is open and both sides know."""
        found = self._streams.get(stream)
        return found is not None and found.accepted

    def allows(self, now: float, *, needed: bool = False) -> bool:
        """Whether the other side bears one frame more at `now` (monotonic seconds) that is not worth its while; of
        what is `needed`, more."""
        return self._spent_here.allows(now, self._now, needed=needed)

    # --- commands ---------------------------------------------------------------------------------------

    def hello(self, document: bytes) -> bytes:
        """The first frame of either side."""
        return _frame(Kind.HELLO, 0, document)

    def open(self, document: bytes) -> tuple[int, bytes]:
        """A new stream. Raises `Fault(STREAM_LIMIT)`."""
        if not self.can_open:
            raise Fault(Reason.STREAM_LIMIT, "the other side takes no more streams over this tunnel")
        stream, self._next = self._next, self._next + 2
        self._streams[stream] = _Stream(ours=True)
        self._ours += 1
        self._spent_here.cost += _COST[Kind.OPEN]
        return stream, _frame(Kind.OPEN, stream, document)

    def accept(self, stream: int, document: bytes) -> bytes:
        """Take a requested stream; nothing when it is over meanwhile."""
        found = self._streams.get(stream)
        if found is None or found.ours or found.accepted:
            return b""
        found.accepted = True
        return _frame(Kind.OPENED, stream, document)

    def refuse(self, stream: int, document: bytes) -> bytes:
        """Turn a requested stream away; nothing when it is over meanwhile."""
        found = self._streams.get(stream)
        if found is None or found.ours or found.accepted:
            return b""
        self._forget(stream)
        return _frame(Kind.REFUSED, stream, document)

    def data(self, stream: int, size: int) -> bytes:
        """The header of `size` bytes (1 to `MAX_DATA`, at most `credit`) of `stream`, which the caller sends behind
        it."""
        self._streams[stream].credit -= size
        here = self._spent_here
        here.cost += DATA_COST
        here.carried += size
        self._spent_there.carried += size
        return HEADER.pack(Kind.DATA, stream, size)

    def datagram(self, stream: int, data: bytes) -> bytes:
        """One datagram. Nothing when there is no room for it: datagrams may get lost."""
        cost = datagram_cost(len(data))
        if len(data) > MAX_DATAGRAM or self.credit(stream) < cost:
            return b""
        self._streams[stream].credit -= cost
        self._spent_here.cost += DATA_COST if data else _EMPTY
        self._spent_here.carried += len(data)
        self._spent_there.carried += len(data)
        return _frame(Kind.DATAGRAM, stream, data)

    def consumed(self, stream: int, size: int) -> bytes:
        """So much of what came of `stream` is dealt with: credit for the other side, when it is worth a frame, for each
        is a TLS record and a system call of its own at every hop."""
        found = self._streams.get(stream)
        if found is None or found.ended_there:
            return b""
        found.owed += size
        if found.owed < found.window // 2:
            return b""
        given = max(found.owed + self._fair_window() - found.window, 0)
        found.window += given - found.owed
        found.owed = 0
        if not given:
            return b""
        found.room += given
        self._spent_here.cost += _COST[Kind.CREDIT]
        return HEADER.pack(Kind.CREDIT, stream, _U32.size) + _U32.pack(given)

    def _fair_window(self) -> int:
        """What each of the streams that are open may have under way."""
        return max(WINDOW, min(WIDEST, SHARED // len(self._streams)))

    def end(self, stream: int) -> bytes:
        """Send no more of `stream`. What is not accepted yet has no end: nothing."""
        found = self._streams.get(stream)
        if found is None or found.ended_here or not found.accepted:
            return b""
        found.ended_here = True
        if found.ended_there:
            self._forget(stream)
        return _frame(Kind.END, stream, b"")

    def reset(self, stream: int, reason: Reason) -> bytes:
        """End `stream` both ways, now."""
        if stream not in self._streams:
            return b""
        self._forget(stream)
        return _frame(Kind.RESET, stream, reason.code.encode("ascii"))

    def ping(self, number: int) -> bytes:
        return self._of_tunnel(Kind.PING, _U64.pack(number))

    def pong(self, number: int) -> bytes:
        return self._of_tunnel(Kind.PONG, _U64.pack(number))

    def drain(self) -> bytes:
        """Take no new streams any more."""
        return self._of_tunnel(Kind.DRAIN, b"")

    def _of_tunnel(self, kind: Kind, body: bytes) -> bytes:
        self._spent_here.cost += _COST[kind]
        return _frame(kind, 0, body)

    # --- what comes -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> Iterator[Event]:
        """The events that are whole with `data`, which came at `now` (monotonic seconds). Raises
        `Fault(TUNNEL_MALFORMED | TUNNEL_FLOODED)`: then the tunnel has to end."""
        self._now = now
        at, end = 0, len(data)
        while at < end:
            if self._left:
                size = min(self._left, end - at)
                self._left -= size
                if self._of:
                    yield DataReceived(self._of, data[at : at + size] if size < end else data)
                at += size
            elif self._head or end - at < HEADER.size:
                at += self._fill(data, at)
                yield from self._whole()
            else:
                kind, stream, length = HEADER.unpack_from(data, at)
                self._check(kind, stream, length)
                at += HEADER.size
                if kind == Kind.DATA:
                    self._begin_data(stream, length)
                elif end - at >= length:
                    yield from self._take(Kind(kind), stream, data[at : at + length])
                    at += length
                else:
                    self._head += data[at - HEADER.size :]
                    at = end

    def _fill(self, data: bytes, at: int) -> int:
        """Add to what is held of a frame, to its end at most; how much was added."""
        want = HEADER.size
        if len(self._head) >= HEADER.size:
            want += HEADER.unpack_from(self._head)[2]
        size = min(want - len(self._head), len(data) - at)
        self._head += data[at : at + size]
        return size

    def _whole(self) -> Iterator[Event]:
        """What is held, once it is whole; judged as soon as its header is."""
        if len(self._head) < HEADER.size:
            return
        kind, stream, length = HEADER.unpack_from(self._head)
        if len(self._head) == HEADER.size:
            self._check(kind, stream, length)
            if kind == Kind.DATA:
                self._head.clear()
                self._begin_data(stream, length)
                return
        if len(self._head) == HEADER.size + length:
            body = bytes(self._head[HEADER.size :])
            self._head.clear()
            yield from self._take(Kind(kind), stream, body)

    def _check(self, kind: int, stream: int, length: int) -> None:
        bounds = _BODY.get(kind)  # type: ignore[call-overload]  # an unknown kind is no key of it
        if bounds is None:
            raise _malformed(f"unknown kind {kind}")
        if not bounds[0] <= length <= bounds[1]:
            raise _malformed(f"a frame of kind {kind} with {length} bytes")
        if (kind in _OF_TUNNEL) is not (stream == 0):
            raise _malformed(f"a frame of kind {kind} on stream {stream}")
        if self._greeted is (kind == Kind.HELLO):
            raise _malformed("HELLO comes first, and once")

    def _begin_data(self, stream: int, length: int) -> None:
        self._left, self._of = length, stream if self._spend(stream, length) else 0
        there = self._spent_there
        there.cost += DATA_COST
        there.carried += length
        self._spent_here.carried += length
        if there.cost >= LOOK:
            self._check_budget()

    def _spend(self, stream: int, cost: int) -> bool:
        """Count what comes of `stream` against the room it was given; whether anybody still listens."""
        found = self._streams.get(stream)
        if found is None:
            self._check_known(stream)
            self._strays -= cost
            if self._strays < 0:
                raise _malformed("more than may come of streams that are over")
            return False
        found.room -= cost
        if found.room < 0 or found.ended_there or not found.accepted:
            raise _malformed("sent without credit, before the answer or after the end")
        return True

    def _take(self, kind: Kind, stream: int, body: bytes) -> Iterator[Event]:
        self._charge(kind, stream, body)
        if kind in _OF_TUNNEL:
            yield self._take_of_tunnel(kind, body)
        elif kind is Kind.OPEN:
            yield self._requested(stream, body)
        elif kind is Kind.DATAGRAM:
            if self._spend(stream, datagram_cost(len(body))):
                yield DatagramReceived(stream, body)
        elif stream not in self._streams:
            self._check_known(stream)
        else:
            event = self._take_of_stream(kind, stream, self._streams[stream], body)
            if event is not None:
                yield event

    def _charge(self, kind: Kind, stream: int, body: bytes) -> None:
        """Count what `kind` costs: a datagram more for being empty, and anything for coming too late."""
        there = self._spent_there
        if kind is Kind.DATAGRAM:
            there.cost += DATA_COST if body else _EMPTY
            there.carried += len(body)
            self._spent_here.carried += len(body)
        else:
            there.cost += _COST.get(kind, 0 if stream in self._streams else 1)
        if there.cost >= 1:
            self._check_budget()

    def _check_budget(self) -> None:
        if not self._spent_there.is_borne(self._now):
            raise Fault(Reason.TUNNEL_FLOODED, field="tunnel")

    def _take_of_tunnel(self, kind: Kind, body: bytes) -> Event:
        if kind is Kind.HELLO:
            self._greeted = True
            return HelloReceived(body)
        if kind is Kind.DRAIN:
            self._draining_there = True
            return Draining()
        number = _U64.unpack(body)[0]
        return Pinged(number) if kind is Kind.PING else Ponged(number)

    def _requested(self, stream: int, body: bytes) -> StreamRequested:
        if stream <= self._newest_there or (stream % 2 == 1) is self._dials:
            raise _malformed(f"stream {stream} cannot begin")
        if self._theirs >= self._most_theirs:
            raise _malformed(f"more than {self._most_theirs} streams")
        self._newest_there = stream
        self._streams[stream] = _Stream(ours=False)
        self._theirs += 1
        return StreamRequested(stream, body)

    def _take_of_stream(self, kind: Kind, stream: int, found: _Stream, body: bytes) -> Event | None:
        if kind is Kind.CREDIT:
            more = _U32.unpack(body)[0]
            if not more or found.credit + more > MAX_CREDIT or not found.accepted:
                raise _malformed("no credit that can be")
            found.credit += more
            return CreditReceived(stream)
        if kind is Kind.RESET:
            self._forget(stream, strays=False)
            return StreamReset(stream, body.decode("ascii", "replace"))
        if kind is Kind.END:
            return self._ended_there(stream, found)
        if not found.ours or found.accepted:
            raise _malformed("an answer to what was not asked")
        if kind is Kind.OPENED:
            found.accepted = True
            return StreamAccepted(stream, body)
        self._forget(stream, strays=False)
        return StreamRefused(stream, body)

    def _ended_there(self, stream: int, found: _Stream) -> StreamEnded:
        if found.ended_there or not found.accepted:
            raise _malformed("an end without a beginning, or twice")
        found.ended_there = True
        if found.ended_here:
            self._forget(stream)
        return StreamEnded(stream)

    def _check_known(self, stream: int) -> None:
        """A stream that was once: only such may still be spoken of."""
        ours = (stream % 2 == 1) is self._dials
        if stream >= self._next if ours else stream > self._newest_there:
            raise _malformed(f"stream {stream} never began")

    def _forget(self, stream: int, *, strays: bool = True) -> None:
        """It is over. Where the other side cannot know yet, what it was allowed to send may still come."""
        found = self._streams.pop(stream)
        if found.ours:
            self._ours -= 1
        else:
            self._theirs -= 1
        if strays and not found.ended_there and (found.accepted or found.ours):
            self._strays = min(self._strays + found.room, MAX_CREDIT)
        if self._of == stream:
            self._of = 0  # the rest of its frame is nobody's


def datagram_cost(size: int) -> int:
    """What a datagram takes of its stream's credit: its bytes and its header, so that empty ones are not free."""
    return size + HEADER.size


def _frame(kind: Kind, stream: int, body: bytes) -> bytes:
    if len(body) > _BODY[kind][1]:
        raise Fault(Reason.MESSAGE_TOO_LARGE, f"at most {_BODY[kind][1]} bytes are allowed", field="tunnel")
    return HEADER.pack(kind, stream, len(body)) + body


def _malformed(detail: str) -> Fault:
    return Fault(Reason.TUNNEL_MALFORMED, detail, field="tunnel")

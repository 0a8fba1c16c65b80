"""What frames cost: our own beside HTTP/2's, by `h2` and by `hyperframe` alone (docs/adr/0006-tunnel-frames.md).

Both sides in one process and no socket: bytes that one side has made are given to the other, and what that one answers
(credit, WINDOW_UPDATE) goes back. Both have windows of 256 KiB and frames of at most 64 KiB; `hyperframe` alone reads
and writes frames and keeps no state, so that a state machine of our own over HTTP/2's frames could not be faster. Three
loads: one stream in pieces of 64 KiB; 1,000 streams that take turns, 1 KiB each; messages of 64 bytes on one stream.
Data comes in chunks of 256 KiB at most, as a TLS connection gives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived as H2DataReceived
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame

from benchmarks.figure import Failure, Figure, Pairs
from foundation.wire.tunnel import WINDOW, TunnelState
from foundation.wire.tunnel_events import DataReceived

COMMAND = "python -m benchmarks.run framing"
_CHUNK = 256 << 10
_DOCUMENT = b'{"route":"metrics","target":"edge-7","protocol":"tcp"}'
_HEADERS = [(":method", "CONNECT"), (":authority", "edge-7")]


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` take turns with pieces of `size` bytes, `total` bytes in all."""

    name: str
    streams: int
    size: int
    total: int
    batch: int  # pieces that leave together


LOADS = (
    Load("bulk", 1, 64 << 10, 512 << 20, 4),
    Load("streams", 1_000, 1 << 10, 64 << 20, 200),
    Load("messages", 1, 64, 8 << 20, 200),
)


class Ours:
    """A node and a gateway."""

    def __init__(self, streams: int) -> None:
        self.near, self.far = TunnelState(dials=True), TunnelState(dials=False)
        opened = [self.near.open(_DOCUMENT) for _ in range(streams)]
        self.streams = [number for number, _ in opened]
        list(self.far.receive(self.near.hello(b"{}") + b"".join(frame for _, frame in opened), 0.0))
        accepted = b"".join(self.far.accept(number, _DOCUMENT) for number in self.streams)
        list(self.near.receive(self.far.hello(b"{}") + accepted, 0.0))

    def send(self, pieces: list[tuple[int, bytes]]) -> bytes:
        return b"".join(part for stream, data in pieces for part in (self.near.data(stream, len(data)), data))

    def take(self, raw: bytes) -> int:
        """The far side reads and gives room back; how much it read."""
        taken, back = 0, []
        for event in self.far.receive(raw, 0.0):
            assert isinstance(event, DataReceived)
            taken += len(event.data)
            back.append(self.far.consumed(event.stream, len(event.data)))
        list(self.near.receive(b"".join(back), 0.0))
        return taken


class ByH2:
    """The same by h2."""

    def __init__(self, streams: int) -> None:
        self.near, self.far = (
            H2Connection(H2Configuration(client_side=side, header_encoding=None, validate_inbound_headers=False))
            for side in (True, False)
        )
        for side in (self.near, self.far):
            side.initiate_connection()
            side.update_settings(
                {
                    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                    SettingCodes.MAX_FRAME_SIZE: 64 << 10,
                    SettingCodes.MAX_CONCURRENT_STREAMS: 4096,
                }
            )
            side.increment_flow_control_window(1 << 30)
        self._exchange()
        self.streams = [2 * number + 1 for number in range(streams)]
        for number in self.streams:
            self.near.send_headers(number, _HEADERS)
        self._exchange()
        for number in self.streams:
            self.far.send_headers(number, [(":status", "200")])
        self._exchange()

    def _exchange(self) -> None:
        for _ in range(3):
            self.far.receive_data(self.near.data_to_send())
            self.near.receive_data(self.far.data_to_send())

    def send(self, pieces: list[tuple[int, bytes]]) -> bytes:
        for stream, data in pieces:
            self.near.send_data(stream, data)
        return self.near.data_to_send()

    def take(self, raw: bytes) -> int:
        taken = 0
        for event in self.far.receive_data(raw):
            if isinstance(event, H2DataReceived):
                taken += len(event.data)
                self.far.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.near.receive_data(self.far.data_to_send())
        return taken


class ByHyperframe:
    """Its frames alone, without any state: no credit, no streams."""

    def __init__(self, streams: int) -> None:
        self.streams = [2 * number + 1 for number in range(streams)]
        self._rest = b""  # of a frame that is not whole

    def send(self, pieces: list[tuple[int, bytes]]) -> bytes:
        return b"".join(DataFrame(stream, data).serialize() for stream, data in pieces)

    def take(self, raw: bytes) -> int:
        taken, at, view = 0, 0, memoryview(self._rest + raw)
        while at + 9 <= len(view):
            frame, length = Frame.parse_frame_header(view[at : at + 9])
            if at + 9 + length > len(view):
                break
            frame.parse_body(view[at + 9 : at + 9 + length])
            at += 9 + length
            taken += length
        self._rest = bytes(view[at:])
        return taken


Pair = Ours | ByH2 | ByHyperframe
_PEERS: dict[str, Callable[[int], Pair]] = {"h2": ByH2, "hyperframe": ByHyperframe}


def figures(short: bool) -> Iterator[Figure | Failure]:
    rounds, share = (1, 20) if short else (5, 1)
    for load in LOADS:
        own: list[float] = []
        theirs: dict[str, list[float]] = {name: [] for name in _PEERS}
        for _ in range(rounds):
            own.append(_rate(Ours, load, share))
            for name, peer in _PEERS.items():
                theirs[name].append(_rate(peer, load, share))
        for name, found in theirs.items():
            yield Pairs(own, found, name).figure(f"framing_{load.name}_vs_{name}", "MB/s", COMMAND)


def _rate(make: Callable[[int], Pair], load: Load, share: int) -> float:
    """Megabytes per second of one process that makes and reads all of it."""
    pair, piece = make(load.streams), bytes(load.size)
    left, turn = load.total // share, 0
    begin = time.perf_counter()
    while left > 0:
        pieces = [(pair.streams[(turn + n) % load.streams], piece) for n in range(load.batch)]
        turn += load.batch
        raw = pair.send(pieces)
        for at in range(0, len(raw), _CHUNK):
            left -= pair.take(raw[at : at + _CHUNK])
    return (load.total // share) / (time.perf_counter() - begin) / 1e6

"""What the other side of a tunnel said, as `foundation.wire.tunnel.TunnelState.receive` tells it."""

from __future__ import annotations

from typing import NamedTuple


class HelloReceived(NamedTuple):
    """The first frame of the other side."""

    document: bytes


class StreamRequested(NamedTuple):
    """The other side wants a stream: answer by `accept` or `refuse`."""

    stream: int
    document: bytes


class StreamAccepted(NamedTuple):
    """Our stream is open from now on."""

    stream: int
    document: bytes


class StreamRefused(NamedTuple):
    """Our stream is over before it began."""

    stream: int
    document: bytes


class DataReceived(NamedTuple):
    """A piece of a stream, never empty. `consumed` gives its room back."""

    stream: int
    data: bytes


class DatagramReceived(NamedTuple):
    """One datagram, whole. `consumed` gives its room back (`datagram_cost`)."""

    stream: int
    data: bytes


class CreditReceived(NamedTuple):
    """More of a stream may be sent."""

    stream: int


class StreamEnded(NamedTuple):
    """The other side sends no more of it."""

    stream: int


class StreamReset(NamedTuple):
    """It is over, both ways, at once; `reason` is a code."""

    stream: int
    reason: str


class Pinged(NamedTuple):
    """Answer by `pong`."""

    number: int


class Ponged(NamedTuple):
    number: int


class Draining(NamedTuple):
    """The other side takes no new streams any more: have them elsewhere."""


Event = (
    HelloReceived
    | StreamRequested
    | StreamAccepted
    | StreamRefused
    | DataReceived
    | DatagramReceived
    | CreditReceived
    | StreamEnded
    | StreamReset
    | Pinged
    | Ponged
    | Draining
)

"""What the frames of a tunnel cost, and how many of them one side may ask of the other.

Laws held here:
- every frame costs, carried octets earn, whichever way they go: so a side that carries little has a bound, which fills
  with time, and one that carries much has none. A frame of DATA with 103 octets pays for itself, and so do 64 octets
  there with 64 back;
- whoever sends reckons too, with half of what it may, so that what it sends is borne though the network holds it up for
  ten seconds and then delivers it at once. It never counts on time in which nothing was heard for longer than that.

Pure: the time is given.
"""

from __future__ import annotations

from foundation.bucket import BURST_SECONDS, Bucket

FRAMES_OF_NODE = 1_000
FRAMES_OF_GATEWAY = 20_000
"""Frames that carry nothing, per second, from a node and from a gateway, which speaks for many."""
FRAME_WORTH = 1024
"""Octets of streams, either way, that are worth one such frame."""
DATA_COST = 0.1
"""What DATA, and a DATAGRAM that is not empty, costs of it."""
WORTHWHILE = 103
"""Octets with which such a frame has paid for itself."""
LOOK = 6.4
"""How much of such frames is reckoned at a time: 64 of them."""


class Spending:
    """What one side spends. `cost` and `carried` are what is not reckoned yet: they are added to from outside, with
    every frame, which is why that is no call."""

    __slots__ = ("_bucket", "carried", "cost")

    def __init__(self, rate: float, now: float) -> None:
        """`rate` is in frames that carry nothing, per second."""
        self._bucket = Bucket(rate, now)
        self.cost = 0.0
        self.carried = 0  # octets

    def is_borne(self, now: float, *, debt: float = 0.0) -> bool:
        """Whether, at `now` (monotonic seconds), no more was spent than there was, and `debt`."""
        net = self.cost - self.carried / FRAME_WORTH
        self.cost, self.carried = 0.0, 0
        if net < 0:
            self._bucket.earn(-net)
            net = 0
        return self._bucket.spend(net, now) or self._bucket.left >= -debt


class OwnSpending(Spending):
    """What we spend, by the half of what the other side bears of us."""

    __slots__ = ("_debt",)

    def __init__(self, rate: float, now: float) -> None:
        super().__init__(rate / 2, now)
        self._debt = rate / 2 * BURST_SECONDS * 0.8

    def allows(self, now: float, heard_at: float, *, needed: bool = False) -> bool:
        """Whether one frame more is borne at `now`, where the other side was heard last at `heard_at`. For what is
        `needed`, as a new stream is, most of the other half may be used too."""
        return self.is_borne(min(now, heard_at + BURST_SECONDS), debt=self._debt if needed else 0.0)

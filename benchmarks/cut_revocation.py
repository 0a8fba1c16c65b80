"""How soon the streams of a revoked identity are cut, and whether that costs the others anything.

10,000 streams are open, 1,000 each of ten identities. One identity is revoked over the API, and a client sees the last
of its 1,000 streams close. Time counts from when the API was called, so that everything is in it: the call, the audit
log, the commit, the cut. A new identity opens 1,000 streams, and so again, 100 times. `cut_1000_of_10000_p99_ms` is the
99th percentile of the hundred.

The curve: the same with 10, 100 and 3,000 streams of the revoked identity among the 9,000 others, and 1,000 among none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks.field import say
from benchmarks.figure import Failure, Figure, alone, at_most
from benchmarks.streams import Cut, Standing, bystanders, p99, standing, tell

COMMAND = "python -m benchmarks.run cut_revocation"
GOAL_MS = 100.0
EACH = 1_000
_STREAM = "/r0/files/stream"


class Revoking:
    """Opens streams of one identity after another and revokes it."""

    def __init__(self, stands: Standing) -> None:
        self._stands = stands
        self._next = 0

    def cut(self, streams: int) -> Cut:
        """One revocation of an identity with so many streams."""
        name, stands = f"edge-{self._next}", self._stands
        self._next += 1
        stands.holder.open(name, name, streams, _STREAM)
        begin, spent = stands.calm()
        stands.site.operator.post(f"/v1/inventory/node/{name}/revoke", {"reason": "key_compromise"})
        return stands.cut([name], begin, time.time_ns(), spent)


def figures(short: bool) -> Iterator[Figure | Failure]:
    count, few, others = (5, 2, 4) if short else (100, 5, 9)
    with standing() as stands:
        revoking = Revoking(stands)
        nobody_else = [revoking.cut(EACH) for _ in range(few)]
        for number in range(others):
            took = stands.holder.open(f"stay-{number}", f"edge-{900 + number}", EACH, _STREAM)
            say(f"{(number + 1) * EACH} streams are open; the last {EACH} took {took:.1f} s")
        cuts = []
        for number in range(1, count + 1):
            cuts.append(revoking.cut(EACH))
            tell("revocation", number, count, cuts[-1])
        yield from _figures(cuts)
        yield from _curve(revoking, nobody_else, cuts, few)
        left = sum(stands.holder.count(f"stay-{number}") for number in range(others))
        if left != others * EACH:
            yield Failure("cut_1000_of_10000_p99_ms", f"{others * EACH - left} streams of others were closed")


def _figures(cuts: list[Cut]) -> Iterator[Figure]:
    called = [each.called for each in cuts]
    yield at_most("cut_1000_of_10000_p99_ms", p99(called), "ms", GOAL_MS, COMMAND, called)
    yield from bystanders("cut_1000", cuts, COMMAND)


def _curve(revoking: Revoking, nobody_else: list[Cut], cuts: list[Cut], count: int) -> Iterator[Figure]:
    yield from _point("cut_1000_of_1000", nobody_else)
    for streams in (10, 100):
        yield from _point(f"cut_{streams}_of_10000", [revoking.cut(streams) for _ in range(count)])
    yield from _point("cut_1000_of_10000", cuts)
    yield from _point("cut_3000_of_12000", [revoking.cut(3 * EACH) for _ in range(max(2, count // 4))])


def _point(name: str, cuts: list[Cut]) -> Iterator[Figure]:
    """The medians: milliseconds to the last close, and of CPU."""
    for what, found in (("p50", [each.called for each in cuts]), ("cpu", [each.cpu for each in cuts])):
        yield alone(f"{name}_{what}_ms", median(found), "ms", COMMAND, found)

"""When a lost tunnel is dialled again, and how long apart signs of life are: pure functions of a draw.

A pause is drawn evenly from all of its window ("full jitter"), and the window doubles with each failure, so that nodes
that lost a gateway together do not come back together. docs/operations.md has the curve for 10,000 of them.
"""

from __future__ import annotations

SHORTEST = 0.1
LONGEST = 30.0
_FIRST_WINDOW = 2.0
_DOUBLINGS = 8  # beyond which every window is the longest
_SPREAD = 0.25


def pause(failures: int, draw: float) -> float:
    """Seconds to wait before the next attempt after so many in a row that failed; `draw` is from 0 to 1."""
    window = min(LONGEST, _FIRST_WINDOW * 2.0 ** min(failures, _DOUBLINGS))
    return SHORTEST + draw * (window - SHORTEST)


def spread(seconds: float, draw: float) -> float:
    """`seconds`, a quarter less to a quarter more; `draw` is from 0 to 1."""
    return seconds * (1 - _SPREAD + 2 * _SPREAD * draw)

"""When a worker stops to give back memory: rings of objects, and free pages to the kernel.

An exchange leaves no rings of objects behind, so that reference counts free nearly everything. The collector by itself
looks through all that lives, remembered decisions above all, whenever a quarter was added: 30 to 100 ms in which nobody
is served, every few seconds (seen at 5,000 requests a second). So it looks at young objects alone, and at everything
once a minute, for the rings that a torn connection or a failure may leave.

The C library keeps what was freed. uvloop takes 256 KiB for each TLS connection and touches the beginning of it; the
next one's beginning is elsewhere, until all of some forty megabytes has been touched. So what is free goes back to the
kernel at the same time: one or two milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

from foundation.clock import Clock

YOUNG_OBJECTS = 20_000  # one look at them takes about a millisecond
EVERYTHING_SECONDS = 60.0
_NEVER = 1_000_000


async def collect_seldom(clock: Clock) -> None:
    """Hold the collector to that, until cancelled; then it is as it was."""
    before, give_back = gc.get_threshold(), _giving_back()
    gc.set_threshold(YOUNG_OBJECTS, _NEVER, _NEVER)
    try:
        while True:
            await clock.sleep(EVERYTHING_SECONDS)
            gc.collect()
            give_back(0)
    finally:
        gc.set_threshold(*before)


def _giving_back() -> Callable[[int], object]:
    """malloc_trim(3), which glibc alone has: it takes how many bytes to keep at the heap's end."""
    found: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)
    return found

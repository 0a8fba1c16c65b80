"""When the garbage collector may stop a worker.

An exchange leaves no rings of objects behind, so that reference counts free nearly everything. The collector by itself
looks through all that lives, remembered decisions above all, whenever a quarter was added: 30 to 100 ms in which nobody
is served, every few seconds (seen at 5,000 requests a second). So it looks at young objects alone, and at everything
once a minute, for the rings that a torn connection or a failure may leave.
"""

from __future__ import annotations

import gc

from foundation.clock import Clock

YOUNG_OBJECTS = 20_000  # one look at them takes about a millisecond
EVERYTHING_SECONDS = 60.0
_NEVER = 1_000_000


async def collect_seldom(clock: Clock) -> None:
    """Hold the collector to that, until cancelled; then it is as it was."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, _NEVER, _NEVER)
    try:
        while True:
            await clock.sleep(EVERYTHING_SECONDS)
            gc.collect()
    finally:
        gc.set_threshold(*before)

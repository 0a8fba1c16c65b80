"""`python -m benchmarks.counted FILE ARGUMENTS…`: sallyport below cProfile, from a SIGUSR2 on, so that the start is not
counted. The profile is in FILE when it has ended."""

from __future__ import annotations

import cProfile
import signal
import sys

from sallyport import main

if __name__ == "__main__":
    file, profile = sys.argv.pop(1), cProfile.Profile()
    signal.signal(signal.SIGUSR2, lambda number, frame: profile.enable())
    try:
        main()
    finally:
        profile.disable()
        profile.dump_stats(file)

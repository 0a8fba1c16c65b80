"""A worker below cProfile: see `benchmarks.counted`."""

from __future__ import annotations

import cProfile
import os
import signal

from gateway.worker import main

if __name__ == "__main__":
    profile, file = cProfile.Profile(), os.environ["SALLYPORT_COUNTED"]

    def begin(number: int, frame: object) -> None:
        profile.enable()

    def end(number: int, frame: object) -> None:
        profile.disable()
        profile.dump_stats(file + ".part")
        os.rename(file + ".part", file)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    main()

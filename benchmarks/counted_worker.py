"""A worker below cProfile: see `benchmarks.counted`."""

from __future__ import annotations

import cProfile
import os
import signal

from gateway.worker import main

if __name__ == "__main__":
    profile, file = cProfile.Profile(), os.environ["SALLYPORT_COUNTED"]

    counting = False

    def turn(number: int, frame: object) -> None:
        global counting  # noqa: PLW0603  # a program's own state
        counting = not counting
        if counting:
            profile.enable()
            return
        profile.disable()
        profile.dump_stats(file + ".part")
        os.rename(file + ".part", file)

    signal.signal(signal.SIGUSR1, turn)  # the other one is the worker's own
    main()

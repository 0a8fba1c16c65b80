"""When a supervised service starts again: a judgement, without processes or clocks.

```
           spawned                exited                    time has come
 starting ─────────▶ running ──────────────▶ backing off ──────────────────▶ starting
     │                  │                        ▲    │
     └─── not spawned ──┼────────────────────────┘    │
                        └────────── stopped ◀─────────┘   when the agent stops
```

Laws held here:
- the pause before a restart doubles with each failure in a row, from `least` to `most`, and up to half of it is taken
  off by lot, so that services that fell together do not rise together;
- a service that ran for `quiet` has recovered: its failures are forgotten;
- nothing is given up: after any number of failures the next start comes within `most`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

_MAX_DOUBLINGS = 32  # 2^32 times any `least` is above any `most`


class Phase(StrEnum):
    """Where a service is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Seconds: the first pause, the longest, and how long a service runs to count as recovered."""

    least: float = 1.0
    most: float = 60.0
    quiet: float = 60.0


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of a service. `since` is the monotonic second in which the phase began; `failures` counts those in
    a row, `restarts` all starts after the first; `last_exit` says how it ended last; `pause` is how many seconds it
    backs off."""

    phase: Phase = Phase.STOPPED
    since: float = 0.0
    failures: int = 0
    restarts: int = 0
    last_exit: str = ""
    pause: float = 0.0


def starting(life: Life, at: float) -> Life:
    """It is being started."""
    again = life.phase is Phase.BACKING_OFF
    return replace(life, phase=Phase.STARTING, since=at, restarts=life.restarts + again, pause=0.0)


def running(life: Life, at: float) -> Life:
    """It was started."""
    return replace(life, phase=Phase.RUNNING, since=at)


def backing_off(life: Life, policy: RestartPolicy, exit_: str, at: float, lot: float) -> Life:
    """It ended, or could not be started, as `exit_` says. `lot` is drawn from [0, 1)."""
    recovered = life.phase is Phase.RUNNING and at - life.since >= policy.quiet
    failures = 1 if recovered else life.failures + 1
    pause = next_pause(policy, failures, lot)
    return replace(life, phase=Phase.BACKING_OFF, since=at, failures=failures, last_exit=exit_, pause=pause)


def stopped(life: Life, at: float) -> Life:
    """The agent ended it."""
    return replace(life, phase=Phase.STOPPED, since=at, pause=0.0)


def next_pause(policy: RestartPolicy, failures: int, lot: float) -> float:
    """Seconds before the start that follows this many failures in a row (1 or more)."""
    whole = min(policy.most, policy.least * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    return whole * (1 - lot / 2)

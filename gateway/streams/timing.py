"""How long trust outlived its end: from the authority's commit (or from a deadline) to the cut of each stream.

The commit's time comes with the change, by the authority's clock; the cut's is this gateway's trust time, which the
authority's heartbeats carry along. A cut that took longer than `alarm` is counted, logged, and told on `/readyz` and by
`sallyport doctor` for `window` seconds.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from foundation.clock import Clock
from foundation.fields import Fields
from foundation.reasons import Reason

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 600.0)
_BOUNDS = (*map(str, SECONDS), "+Inf")
CAUSES = (Reason.CUT_BY_REVOCATION, Reason.CUT_BY_CHANGE, Reason.CUT_BY_DEADLINE)
LOG_EVERY = 10.0
_KEPT = 1024
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Section `[gateway.streams]`, seconds. `cut_alarm` is how late a cut may be before somebody has to look;
    `alarm_window` how long that is told."""

    cut_alarm: float = 2.0
    alarm_window: float = 600.0

    @classmethod
    def parse(cls, fields: Fields) -> StreamSettings:
        settings = cls(fields.duration("cut_alarm", "2s"), fields.duration("alarm_window", "10m"))
        if settings.cut_alarm <= 0:
            raise fields.fault("cut_alarm", "expected more than nothing")
        fields.finish()
        return settings


class CutTimes(Collector):
    """A `gateway.streams.registry.CutListener`, and the metrics of it."""

    def __init__(self, registry: CollectorRegistry, settings: StreamSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets = {cause: [0] * len(_BOUNDS) for cause in CAUSES}
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        about = "Cuts that took longer than the setting gateway.streams.cut_alarm"
        late = Counter("sallyport_cuts_late", about, ("reason",), registry=registry)
        self._late = {cause: late.labels(cause.code) for cause in CAUSES}
        self._recent: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._logged_at = float("-inf")
        registry.register(self)

    def __call__(self, reason: Reason, seconds: float) -> None:
        """A stream was cut for `reason`, `seconds` after trust in it ended."""
        self._buckets[reason][bisect_left(SECONDS, seconds)] += 1
        self._seconds[reason] += seconds
        if seconds > self._settings.cut_alarm:
            self._alarm(reason, seconds)

    def collect(self) -> Iterator[Metric]:
        about = "From the end of trust (the authority's commit, or a deadline) to the cut of a stream"
        family = HistogramMetricFamily("sallyport_time_to_cut_seconds", about, labels=("reason",))
        for cause, buckets in self._buckets.items():
            cumulative = [(bound, float(sum(buckets[: place + 1]))) for place, bound in enumerate(_BOUNDS)]
            family.add_metric((cause.code,), cumulative, self._seconds[cause])
        yield family

    def note(self) -> str:
        """What is wrong, empty when nothing is."""
        since = self._clock.monotonic() - self._settings.alarm_window
        late = [seconds for at, seconds in self._recent if at >= since]
        if not late:
            return ""
        allowed = f"{self._settings.cut_alarm:g} s is allowed"
        return f"{len(late)} streams were cut late, the slowest after {max(late):.3g} s: {allowed}"

    def _alarm(self, reason: Reason, seconds: float) -> None:
        now = self._clock.monotonic()
        self._late[reason].inc()
        self._recent.append((now, seconds))
        if now >= self._logged_at + LOG_EVERY:
            self._logged_at = now
            _LOG.warning(
                "a stream was cut %.3g s after trust in it ended (%s); %g s is allowed",
                seconds,
                reason.code,
                self._settings.cut_alarm,
            )

"""The time to cut is measured by cause; one that is late is counted, logged now and then, and told for a while."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.streams.timing import LOG_EVERY, CutTimes, StreamSettings
from tests.fakes.clock import ManualClock


def test_a_histogram_by_reason() -> None:
    registry = CollectorRegistry()
    cuts = CutTimes(registry, StreamSettings(), ManualClock())
    for seconds in (0.004, 0.005, 0.3, 1000.0):
        cuts(Reason.CUT_BY_REVOCATION, seconds)

    def bucket(le: str, reason: str = "cut_by_revocation") -> float | None:
        return registry.get_sample_value("sallyport_time_to_cut_seconds_bucket", {"reason": reason, "le": le})

    assert [bucket(le) for le in ("0.005", "0.25", "0.5", "600.0", "+Inf")] == [2, 2, 3, 3, 4]
    assert bucket("+Inf", "cut_by_deadline") == 0  # there before the first, so that a rate can be had of it


def test_a_late_cut_is_an_alarm_for_as_long_as_settings_say(caplog: pytest.LogCaptureFixture) -> None:
    registry, clock = CollectorRegistry(), ManualClock()
    cuts = CutTimes(registry, StreamSettings(cut_alarm=1.0, alarm_window=60.0), clock)
    cuts(Reason.CUT_BY_CHANGE, 1.0)
    assert cuts.note() == ""
    cuts(Reason.CUT_BY_CHANGE, 1.5)
    cuts(Reason.CUT_BY_CHANGE, 2.5)
    assert cuts.note() == "2 streams were cut late, the slowest after 2.5 s: 1 s is allowed"
    assert registry.get_sample_value("sallyport_cuts_late_total", {"reason": "cut_by_change"}) == 2
    assert len(caplog.records) == 1
    clock.advance(LOG_EVERY)
    cuts(Reason.CUT_BY_CHANGE, 1.5)
    assert len(caplog.records) == 2
    clock.advance(59)
    assert cuts.note().startswith("1 streams")
    clock.advance(2)
    assert cuts.note() == ""


@pytest.mark.parametrize("section", [{"cut_alarm": "0s"}, {"cut_alarm": 1}, {"unknown": 1}])
def test_wrong_settings_are_refused(section: dict[str, object]) -> None:
    with pytest.raises(Fault):
        StreamSettings.parse(Fields(section, "streams", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN))

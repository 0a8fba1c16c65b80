"""What everything else stands on: clock, records, hot state, and the tables that workers share."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from foundation.audit.log import MerkleAuditLog
from foundation.clock import SystemClock
from foundation.decisionlog.closing import SegmentCloser
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.masking import Mask
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.hotstate import HotState, open_hot_state
from foundation.reasons import Reason
from foundation.telemetry import Telemetry
from foundation.trusttime import TrustTime
from gateway.broker.siblings import SiblingTable
from gateway.enforce import PinnedKey
from gateway.metrics import ProcessMetrics
from gateway.plane import MASK_KEY, SEATS, SIBLINGS
from gateway.proxy.seats import Seats
from gateway.wiring.settings import Settings


@dataclass(frozen=True, slots=True)
class Base:
    """What everything else stands on."""

    telemetry: Telemetry
    time: TrustTime
    audit: MerkleAuditLog
    mask: Mask
    decisions: DecisionLog
    segments: SegmentCloser
    metrics: ProcessMetrics
    policy_key: PinnedKey
    hot: HotState
    seats: Seats
    siblings: SiblingTable

    def worker_ended(self, number: int) -> None:
        """What it held in the tables that workers share, it holds no more."""
        self.seats.clear(number)
        self.siblings.clear(number)

    def forget_workers(self) -> None:
        """No worker of before holds anything in those tables."""
        self.seats.reset()
        self.siblings.reset()


async def open_base(settings: Settings, stack: AsyncExitStack) -> Base:
    """`stack` closes it. Raises `Fault`."""
    state = settings.system.state
    make_private_folder(state)
    telemetry = Telemetry(settings.plane.telemetry)
    stack.callback(telemetry.close)
    time = TrustTime.open(state / "trust-time", SystemClock())
    stack.callback(time.close)
    audit = await MerkleAuditLog.open(settings.audit, time)
    stack.push_async_callback(audit.close)
    metrics = ProcessMetrics(telemetry.registry, lambda: time.behind)
    mask = Mask.open(state / MASK_KEY)
    segments = SegmentCloser(settings.plane.decisions, audit, metrics.dropped)
    decisions = await DecisionLog.open(settings.plane.decisions, time, segments, metrics.dropped, mask)
    stack.push_async_callback(decisions.close)
    await segments.mend_workers()
    policy_key = PinnedKey(settings.policy_key_file)
    hot = open_hot_state(settings.plane.hot_state, time)
    stack.push_async_callback(hot.close)
    await _refuse_unsafe(hot)
    seats, siblings = Seats.shared(state / SEATS, 0), SiblingTable.shared(state / SIBLINGS, 0)
    return Base(telemetry, time, audit, mask, decisions, segments, metrics, policy_key, hot, seats, siblings)


async def _refuse_unsafe(hot: HotState) -> None:
    """A server that may forget stops the start; one that is away does not, and whatever needs it refuses meanwhile."""
    try:
        await hot.generation()
    except Fault as fault:
        if fault.reason is Reason.HOT_STATE_UNSAFE:
            raise

"""State that refuses when it is absent: nonces, sessions, presence, rate counters. Losing it never widens trust."""

from foundation.hotstate.memory import HotStateSettings, MemoryHotState
from foundation.hotstate.port import HotState

__all__ = ["HotState", "HotStateSettings", "MemoryHotState"]

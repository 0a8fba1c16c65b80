"""State that refuses when it is absent: nonces, sessions, presence, rate counters. Losing it never widens trust."""

from foundation.hotstate.memory import MemoryHotState
from foundation.hotstate.port import HotState, Swap
from foundation.hotstate.settings import HotStateSettings

__all__ = ["HotState", "HotStateSettings", "MemoryHotState", "Swap"]

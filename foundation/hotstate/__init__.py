"""State that refuses when it is absent: nonces, sessions, presence. Losing it never widens trust."""

from __future__ import annotations

from foundation.clock import Clock
from foundation.hotstate.memory import MemoryHotState
from foundation.hotstate.port import HotState, Swap
from foundation.hotstate.settings import HotStateSettings

__all__ = ["HotState", "HotStateSettings", "MemoryHotState", "Swap", "open_hot_state"]


def open_hot_state(settings: HotStateSettings, time: Clock) -> HotState:
    """What the settings name: this process's memory, or a Redis server, which need not answer yet. Raises
    `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
    if settings.redis is None:
        return MemoryHotState(settings, time)
    from foundation.hotstate.redis import RedisHotState  # noqa: PLC0415  # nine megabytes

    return RedisHotState(settings.redis)

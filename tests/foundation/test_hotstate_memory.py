"""What is particular to hot state in the process: the wall clock, and memory that removals give back."""

from __future__ import annotations

from foundation.hotstate.memory import MemoryHotState
from foundation.hotstate.settings import HotStateSettings
from tests.fakes.clock import ManualClock


async def test_setting_the_wall_clock_revives_nothing() -> None:
    clock = ManualClock()
    state = MemoryHotState(HotStateSettings(), clock)
    await state.put_once("nonce", b"", 10)
    clock.advance(11)
    clock.set_wall(0)
    assert await state.take("nonce") is None


async def test_removals_leave_nothing_behind() -> None:
    state = MemoryHotState(HotStateSettings(max_entries=2, max_bytes=2000), ManualClock())
    for n in range(10_000):
        assert await state.put_once(f"k{n}", b"x" * 100, 1000)
        await state.take(f"k{n}")
    assert len(state._ends) < 200

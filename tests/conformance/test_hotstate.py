"""What every backend of hot state does. A backend joins by a harness in `BACKENDS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest

from foundation.faults import Fault
from foundation.hotstate.memory import HotStateSettings, MemoryHotState
from foundation.hotstate.port import MAX_KEY, MAX_VALUE_BYTES, HotState
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock


class Harness(Protocol):
    """A backend with room for 64 small entries and about 1 MiB, and its time under the test's hand."""

    state: HotState

    async def advance(self, seconds: float) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.state: HotState = MemoryHotState(HotStateSettings(max_entries=64, max_bytes=1 << 20), self.clock)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


@asynccontextmanager
async def in_memory() -> AsyncIterator[Harness]:
    harness = InMemory()
    yield harness
    await harness.state.close()


BACKENDS = [pytest.param(in_memory, id="memory")]


class Factory(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[Harness]: ...


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    factory: Factory = request.param
    async with factory() as harness:
        yield harness


async def test_put_once_keeps_the_first(backend: Harness) -> None:
    assert await backend.state.put_once("k", b"one", 10)
    assert not await backend.state.put_once("k", b"two", 10)
    assert await backend.state.get("k") == b"one"


async def test_of_many_putters_one_wins(backend: Harness) -> None:
    wins = await asyncio.gather(*(backend.state.put_once("k", b"%d" % n, 10) for n in range(50)))
    assert wins.count(True) == 1


async def test_of_many_takers_one_gets_it(backend: Harness) -> None:
    await backend.state.put_once("k", b"one", 10)
    taken = await asyncio.gather(*(backend.state.take("k") for _ in range(50)))
    assert [value for value in taken if value is not None] == [b"one"]
    assert await backend.state.get("k") is None


async def test_what_was_taken_or_deleted_may_be_put_again(backend: Harness) -> None:
    await backend.state.put_once("k", b"one", 10)
    await backend.state.take("k")
    assert await backend.state.put_once("k", b"two", 10)
    await backend.state.delete("k")
    await backend.state.delete("k")
    assert await backend.state.put_once("k", b"three", 10)


async def test_an_entry_ends(backend: Harness) -> None:
    await backend.state.put_once("k", b"one", 10)
    await backend.advance(9)
    assert await backend.state.get("k") == b"one"
    await backend.advance(2)
    assert await backend.state.get("k") is None
    assert await backend.state.take("k") is None
    assert await backend.state.put_once("k", b"two", 10)


async def test_a_new_life_does_not_end_with_the_old(backend: Harness) -> None:
    await backend.state.put_once("k", b"one", 5)
    await backend.state.take("k")
    await backend.state.put_once("k", b"two", 20)
    await backend.advance(10)
    assert await backend.state.get("k") == b"two"


async def test_a_counter_counts_each_once_and_ends_by_its_first(backend: Harness) -> None:
    counts = await asyncio.gather(*(backend.state.increment("c", 10) for _ in range(20)))
    assert sorted(counts) == list(range(1, 21))
    await backend.advance(6)
    assert await backend.state.increment("c", 10) == 21
    await backend.advance(6)
    assert await backend.state.increment("c", 10) == 1


async def test_full_refuses_what_is_new_and_keeps_what_is_old(backend: Harness) -> None:
    async def fill() -> None:
        for n in range(10_000):
            await backend.state.put_once(f"k{n}", bytes(32 * 1024), 10)

    with pytest.raises(Fault) as caught:
        await fill()
    assert caught.value.reason is Reason.OVERLOADED
    assert await backend.state.get("k0") is not None
    await backend.advance(11)
    assert await backend.state.put_once("new", b"", 10)


async def test_full_of_entries_refuses_counters_too(backend: Harness) -> None:
    async def fill() -> None:
        for n in range(10_000):
            await backend.state.increment(f"c{n}", 10)

    assert await backend.state.increment("c0", 10) == 1
    with pytest.raises(Fault) as caught:
        await fill()
    assert caught.value.reason is Reason.OVERLOADED
    assert await backend.state.increment("c0", 10) == 3


async def test_oversized_keys_and_values_are_refused(backend: Harness) -> None:
    for call in (
        backend.state.put_once("k" * (MAX_KEY + 1), b"", 10),
        backend.state.put_once("k", bytes(MAX_VALUE_BYTES + 1), 10),
        backend.state.get("k" * (MAX_KEY + 1)),
        backend.state.increment("k" * (MAX_KEY + 1), 10),
    ):
        with pytest.raises(Fault) as caught:
            await call
        assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    assert await backend.state.put_once("k" * MAX_KEY, bytes(MAX_VALUE_BYTES), 10)

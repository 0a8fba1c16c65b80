"""What every backend of hot state does. A backend joins by a harness in `BACKENDS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest

from foundation.faults import Fault
from foundation.hotstate.memory import MemoryHotState
from foundation.hotstate.port import MAX_BATCH, MAX_KEY, MAX_VALUE_BYTES, HotState, Swap
from foundation.hotstate.redis import RedisHotState
from foundation.hotstate.settings import HotStateSettings
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock
from tests.support.redis import RedisServer, redis_server


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


class AtRedis:
    """A server with that much room; its time moves by shortening what every entry has left."""

    def __init__(self, server: RedisServer) -> None:
        self.state: HotState = RedisHotState(server.settings)
        self._raw = server.raw()
        used = self._raw.info("memory")["used_memory"]
        self._raw.config_set("maxmemory", used + (1 << 20))

    async def advance(self, seconds: float) -> None:
        for key in self._raw.scan_iter():
            left = self._raw.pttl(key)
            if left >= 0:
                self._raw.pexpire(key, left - int(seconds * 1000))

    def close(self) -> None:
        self._raw.close()


@asynccontextmanager
async def at_redis() -> AsyncIterator[Harness]:
    with redis_server() as server:
        harness = AtRedis(server)
        yield harness
        await harness.state.close()
        harness.close()


BACKENDS = [pytest.param(in_memory, id="memory"), pytest.param(at_redis, id="redis")]


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


async def test_oversized_keys_and_values_are_refused(backend: Harness) -> None:
    for call in (
        backend.state.put_once("k" * (MAX_KEY + 1), b"", 10),
        backend.state.put_once("k", bytes(MAX_VALUE_BYTES + 1), 10),
        backend.state.get("k" * (MAX_KEY + 1)),
    ):
        with pytest.raises(Fault) as caught:
            await call
        assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    assert await backend.state.put_once("k" * MAX_KEY, bytes(MAX_VALUE_BYTES), 10)


async def test_many_are_read_in_their_order(backend: Harness) -> None:
    for n in range(5):
        await backend.state.put_once(f"k{n}", b"%d" % n, 10)
    assert await backend.state.get_many(["k3", "none", "k0", "k3"]) == [b"3", None, b"0", b"3"]
    assert await backend.state.get_many([]) == []


async def test_a_swap_is_done_where_it_finds_what_it_expects(backend: Harness) -> None:
    await backend.state.put_once("k", b"one", 10)
    swaps = [
        Swap("k", b"other", b"wrong"),
        Swap("k", None, b"wrong"),
        Swap("k", b"one", b"two"),
        Swap("k", b"one", b"wrong"),
        Swap("new", b"", b"wrong"),
        Swap("new", None, b""),
        Swap("none", None, None),
        Swap("none", b"x", None),
    ]
    assert await backend.state.swap(swaps, 10) == [False, False, True, False, False, True, True, False]
    assert await backend.state.get_many(["k", "new", "none"]) == [b"two", b"", None]
    assert await backend.state.swap([Swap("k", b"two", None)], 10) == [True]
    assert await backend.state.get("k") is None


async def test_of_many_swappers_one_succeeds(backend: Harness) -> None:
    await backend.state.put_once("k", b"before", 10)
    done = await asyncio.gather(*(backend.state.swap([Swap("k", b"before", b"%d" % n)], 10) for n in range(50)))
    assert done.count([True]) == 1


async def test_a_swap_gives_an_entry_a_new_life(backend: Harness) -> None:
    await backend.state.put_once("k", b"same", 5)
    await backend.advance(4)
    assert await backend.state.swap([Swap("k", b"same", b"same")], 5) == [True]
    await backend.advance(4)
    assert await backend.state.swap([Swap("k", b"same", b"other")], 5) == [True]
    await backend.advance(4)
    assert await backend.state.get("k") == b"other"
    await backend.advance(2)
    assert await backend.state.swap([Swap("k", b"other", b"late")], 5) == [False]


async def test_full_swaps_nothing_new_in_but_still_prolongs_and_removes(backend: Harness) -> None:
    async def fill() -> None:
        for n in range(10_000):
            await backend.state.swap([Swap(f"k{n}", None, bytes(32 * 1024))], 10)

    with pytest.raises(Fault) as caught:
        await fill()
    assert caught.value.reason is Reason.OVERLOADED
    assert await backend.state.swap([Swap("k0", bytes(32 * 1024), bytes(32 * 1024))], 20) == [True]
    assert await backend.state.swap([Swap("k1", bytes(32 * 1024), None)], 10) == [True]
    await backend.advance(11)
    assert await backend.state.get_many(["k0", "k1", "k2"]) == [bytes(32 * 1024), None, None]


async def test_a_batch_is_bounded(backend: Harness) -> None:
    assert len(await backend.state.get_many(["k"] * MAX_BATCH)) == MAX_BATCH
    with pytest.raises(ValueError, match="at most"):
        await backend.state.get_many(["k"] * (MAX_BATCH + 1))
    with pytest.raises(ValueError, match="at most"):
        await backend.state.swap([Swap("k", None, b"")] * (MAX_BATCH + 1), 10)
    with pytest.raises(Fault) as caught:
        await backend.state.swap([Swap("first", None, b""), Swap("k", None, bytes(MAX_VALUE_BYTES + 1))], 10)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    assert await backend.state.get("first") is None


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
async def test_a_ttl_is_a_time(backend: Harness, ttl: float) -> None:
    for call in (
        backend.state.put_once("k", b"", ttl),
        backend.state.swap([Swap("k", None, b"")], ttl),
    ):
        with pytest.raises(ValueError, match="ttl"):
            await call


async def test_a_generation_lasts(backend: Harness) -> None:
    generation = await backend.state.generation()
    await backend.state.put_once("k", b"", 10)
    await backend.advance(11)
    assert await backend.state.generation() == generation

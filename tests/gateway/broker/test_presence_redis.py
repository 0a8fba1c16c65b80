"""Presence over a real Redis server that is flushed, killed, stopped and started again while gateways run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.hotstate.redis import RedisHotState
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from gateway.broker.presence import Presence
from tests.support.processes import PATIENCE
from tests.support.redis import RedisServer, redis_server

NODES = [SpiffeId("fleet.example", Kind.NODE, f"n{number}") for number in range(1000)]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@asynccontextmanager
async def gateway(server: RedisServer, name: str) -> AsyncIterator[Presence]:
    """One that runs."""
    hot = RedisHotState(server.settings)
    presence = Presence(hot, SystemClock(), SpiffeId("fleet.example", Kind.GATEWAY, name), f"{name}.example:7443")
    running = asyncio.ensure_future(presence.run())
    try:
        yield presence
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await hot.close()


async def found(presence: Presence, node: SpiffeId) -> set[str]:
    """The gateways that hold its tunnel; none while hot state is away."""
    try:
        return {claim.gateway.name for claim in await presence.find(node)}
    except Fault as fault:
        if fault.reason is not Reason.HOT_STATE_UNAVAILABLE:
            raise
        return set()


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.01)


async def everything_is_found(asking: Presence, names: set[str]) -> bool:
    return all([await found(asking, node) == names for node in NODES[::100]])


@pytest.mark.parametrize("fault", ["flush", "kill", "freeze", "restart from disk"])
async def test_service_returns_by_itself(server: RedisServer, fault: str) -> None:
    async with gateway(server, "gw1") as one, gateway(server, "gw2") as two:
        for epoch, node in enumerate(NODES, 1):
            one.claim(node, epoch)
            two.claim(node, epoch)
        await until(lambda: everything_is_found(one, {"gw1", "gw2"}))
        await harm(server, fault, one)
        two.release(NODES[0], 1)
        await until(lambda: everything_is_found_but_the_first(two))
        async with gateway(server, "gw3") as three:
            await until(lambda: everything_is_found_but_the_first(three))


async def everything_is_found_but_the_first(asking: Presence) -> bool:
    rest = all([await found(asking, node) == {"gw1", "gw2"} for node in NODES[100::100]])
    return rest and await found(asking, NODES[0]) == {"gw1"}


async def harm(server: RedisServer, fault: str, asking: Presence) -> None:
    if fault == "flush":
        with server.raw() as raw:
            raw.flushall()
        return
    if fault == "freeze":
        server.freeze()
        assert await found(asking, NODES[1]) == set()
        server.thaw()
        return
    if fault == "restart from disk":
        with server.raw() as raw:
            raw.save()
    server.kill()
    assert await found(asking, NODES[1]) == set()
    server.start()


async def test_a_gateway_that_stops_is_found_nowhere(server: RedisServer) -> None:
    async with gateway(server, "gw1") as one:
        async with gateway(server, "gw2") as two:
            two.claim(NODES[0], 1)
            await until(lambda: is_found_at(one, {"gw2"}))
        assert await found(one, NODES[0]) == set()


async def is_found_at(asking: Presence, names: set[str]) -> bool:
    return await found(asking, NODES[0]) == names

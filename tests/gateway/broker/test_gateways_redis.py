"""Two gateways that find each other's tunnels by a real Redis server, which dies and forgets: streams are joined or
refused, and what is open goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from foundation.clock import SystemClock
from foundation.hotstate.redis import RedisHotState
from foundation.identifiers import Kind
from foundation.reasons import Reason
from gateway.broker.gateways_relay import GatewaysRelay
from gateway.broker.links import Links
from gateway.broker.presence import Presence
from tests.fakes.trust import spiffe
from tests.support.brokered import BrokeredPlane, Node, Use, settled
from tests.support.gateway import PATIENCE, OwnFiles
from tests.support.redis import RedisServer, redis_server

NAMES = ("gw-1", "gw-2")


@dataclass
class Pair:
    """Two gateways of one authority that share `redis`."""

    redis: RedisServer
    planes: tuple[BrokeredPlane, BrokeredPlane]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.fixture
async def pair(tmp_path: Path, redis: RedisServer) -> AsyncIterator[Pair]:
    folders = [tmp_path / name for name in NAMES]
    for folder in folders:
        folder.mkdir()
    first = BrokeredPlane(folders[0])
    planes = (first, BrokeredPlane(folders[1], like=first))
    for plane, own in zip(planes, NAMES, strict=True):
        plane.prove(str(spiffe(own, Kind.GATEWAY)))
        for name in NAMES:
            plane.know(name, Kind.GATEWAY)
        for name in "abc":
            plane.know(name)
    async with AsyncExitStack() as stack:
        for plane, own in zip(planes, NAMES, strict=True):
            await stack.enter_async_context(serving(plane, own, redis))
        yield Pair(redis, planes)


@asynccontextmanager
async def serving(plane: BrokeredPlane, name: str, redis: RedisServer) -> AsyncIterator[None]:
    """The plane as gateway `name`, which tells the others and asks them."""
    hot, links, gateway = RedisHotState(redis.settings), Links(plane.clock), spiffe(name, Kind.GATEWAY)
    async with plane.running():
        host, port = plane.address
        presence = Presence(hot, SystemClock(), gateway, f"{host}:{port}")
        own = OwnFiles(plane.authority.service(str(gateway), f"{name}-calls"), plane.authority.root)
        plane.join(GatewaysRelay(presence, gateway, own, links), presence)
        plane.broker.connections = plane.listener.connections
        telling = asyncio.ensure_future(presence.run())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await links.close()
            await hot.close()


async def reached(a: Node, target: str) -> Use:
    """A stream that is answered, once the other gateway has told of its tunnel."""
    async with asyncio.timeout(PATIENCE):
        while (use := await a.reach(target)).answer is None:
            assert use.refusal is not None
            assert use.refusal.reason in (Reason.TARGET_ABSENT, Reason.HOT_STATE_UNAVAILABLE)
            await asyncio.sleep(0.02)
    return use


async def test_a_tunnel_at_the_other_gateway_is_found_and_where_it_moves_to(pair: Pair) -> None:
    first, second = pair.planes
    a, b = await first.node("a"), await second.node("b")
    await reached(a, "b")
    assert len(b.calls) == 1
    moved = await first.node("b")
    await reached(a, "b")
    assert (len(b.calls), len(moved.calls)) == (1, 1)
    moved.close()
    await settled(lambda: first.broker.holder(spiffe("b")) is None)
    await reached(a, "b")
    assert len(b.calls) == 2


async def test_a_node_that_left_is_reached_nowhere(pair: Pair) -> None:
    first, second = pair.planes
    a, b = await first.node("a"), await second.node("b")
    await reached(a, "b")
    b.close()
    await settled(lambda: second.broker.holder(spiffe("b")) is None)
    refused = await a.reach("b")
    assert refused.refusal is not None
    assert refused.refusal.reason is Reason.TARGET_ABSENT


@pytest.mark.parametrize("harm", ["kill", "freeze", "flush"])
async def test_without_redis_what_is_open_and_what_is_here_goes_on_and_then_all_of_it(pair: Pair, harm: str) -> None:
    first, second = pair.planes
    a, b, c = await first.node("a"), await second.node("b"), await first.node("c")
    use = await reached(a, "b")
    if harm == "flush":
        with pair.redis.raw() as raw:
            raw.flushall()
    else:
        pair.redis.kill() if harm == "kill" else pair.redis.freeze()
        refused = await a.reach("b")
        assert refused.refusal is not None
        assert refused.refusal.reason is Reason.HOT_STATE_UNAVAILABLE
    use.write(b"still here")
    await settled(lambda: b.calls[0].data == b"still here")
    assert (await a.reach("c")).answer is not None
    assert len(c.calls) == 1
    if harm != "flush":
        pair.redis.start() if harm == "kill" else pair.redis.thaw()
    await reached(a, "b")
    assert len(b.calls) == 2

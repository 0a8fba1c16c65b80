"""A node's way to its authority through its tunnel: to one address, for nodes that may have a tunnel, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from foundation.identity import Revocation
from foundation.reasons import Reason
from foundation.wire.streams import AUTHORITY_ROUTE
from gateway.broker.authority import AT_ONCE
from gateway.broker.settings import BrokerSettings
from tests.fakes.trust import spiffe
from tests.support.brokered import BrokeredPlane, settled
from tests.support.gateway import RawUpstream


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def plane_before(authority: RawUpstream, folder: Path) -> AsyncIterator[BrokeredPlane]:
    async with authority.running() as address:
        plane = BrokeredPlane(folder, settings=BrokerSettings(authority=str(address)))
        async with plane.running():
            yield plane
            await plane.broker.close()


async def test_bytes_go_there_and_back(tmp_path: Path) -> None:
    async with plane_before(RawUpstream(_echo), tmp_path) as plane:
        a = await plane.node("a")
        use = await a.reach("authority", AUTHORITY_ROUTE)
        assert use.answer is not None
        use.write(b"x" * 3_000_000)
        await settled(lambda: len(use.data) == 3_000_000)
        assert use.stream is not None
        use.stream.end()
        await settled(lambda: use.has_ended or use.cut is not None)
        await settled(lambda: plane.registry.open_count == 0)


async def test_a_revocation_cuts_it(tmp_path: Path) -> None:
    authority = RawUpstream(_echo)
    async with plane_before(authority, tmp_path) as plane:
        a = await plane.node("a")
        use = await a.reach("authority", AUTHORITY_ROUTE)
        plane.store.apply(Revocation(1, spiffe("a"), "", "key_compromise", plane.clock.now()))
        await settled(lambda: use.cut is not None and a.is_lost)
        await settled(lambda: plane.registry.open_count == 0)


async def test_calls_of_one_node_are_bounded(tmp_path: Path) -> None:
    async with plane_before(RawUpstream(_echo), tmp_path) as plane:
        a = await plane.node("a")
        uses = [await a.reach("authority", AUTHORITY_ROUTE) for _ in range(AT_ONCE)]
        one_more = await a.reach("authority", AUTHORITY_ROUTE)
        assert one_more.refusal is not None
        assert one_more.refusal.reason is Reason.STREAM_LIMIT
        first = uses[0].stream
        assert first is not None
        first.reset(Reason.TUNNEL_LOST)
        await settled(lambda: plane.registry.open_count == AT_ONCE - 1)
        assert (await a.reach("authority", AUTHORITY_ROUTE)).answer is not None


async def test_an_authority_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    async with BrokeredPlane(tmp_path, settings=BrokerSettings(authority="127.0.0.1:1")).running() as plane:
        a = await plane.node("a")
        use = await a.reach("authority", AUTHORITY_ROUTE)
        assert use.refusal is not None
        assert use.refusal.reason is Reason.UPSTREAM_UNREACHABLE
        await plane.broker.close()


async def test_without_an_address_there_is_no_way(tmp_path: Path) -> None:
    async with BrokeredPlane(tmp_path).running() as plane:
        a = await plane.node("a")
        use = await a.reach("authority", AUTHORITY_ROUTE)
        assert use.refusal is not None
        assert use.refusal.reason is Reason.ROUTE_UNKNOWN

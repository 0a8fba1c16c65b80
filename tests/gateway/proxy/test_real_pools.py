"""Pools of real servers, killed, slowed and broken while requests come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from policies.upstreams import Address, HealthCheck, Outlier
from tests.support.gateway import DataPlane, RawClient, request_bytes, route
from tests.support.upstreams import etcd, nginx


@dataclass
class Behaving:
    """An aiohttp server that answers as the test says."""

    address: Address = field(default_factory=lambda: Address("", 0))
    status: int = 200
    taken: int = 0
    pause: asyncio.Event | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Behaving]:
        async def answer(request: web.Request) -> web.Response:
            self.taken += 1
            if self.pause is not None:
                await self.pause.wait()
            return web.Response(status=self.status)

        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = Address(*runner.addresses[0][:2])
        try:
            yield self
        finally:
            await runner.cleanup()


async def clients_of(plane: DataPlane, count: int) -> list[RawClient]:
    clients = []
    for number in range(count):
        plane.know(f"edge-{number}")
        clients.append(await plane.connect(plane.pair(f"edge-{number}")))
    return clients


async def ask_all(clients: list[RawClient], method: str = "GET", body: bytes = b"") -> list[int]:
    for client in clients:
        client.send(request_bytes(method, "/x", body=body))
    return [(await client.answer()).status for client in clients]


async def test_an_nginx_that_is_killed_costs_no_read(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        staying = await stack.enter_async_context(nginx(second))
        going = nginx(first)
        gone = await going.__aenter__()
        plane = DataPlane(tmp_path, (route(gone.address, "api", staying.address),))
        await stack.enter_async_context(plane.running())
        clients = await clients_of(plane, 12)
        assert await ask_all(clients) == [200] * 12
        assert len(gone.all()) + len(staying.all()) == 12
        await going.__aexit__(None, None, None)  # SIGKILL
        for _ in range(4):
            assert await ask_all(clients) == [200] * 12
        assert len(staying.all()) >= 48


async def test_one_that_answers_500_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async with Behaving().running() as well, Behaving(status=500).running() as ill:
        outlier = Outlier(consecutive_5xx=3, ejection=60.0)
        plane = DataPlane(tmp_path, (route(ill.address, "api", well.address, pool={"outlier": outlier}),))
        async with plane.running():
            clients = await clients_of(plane, 8)
            for _ in range(4):
                await ask_all(clients)
            taken = ill.taken
            assert 3 <= taken < 16
            assert await ask_all(clients) == [200] * 8
            assert ill.taken == taken
            ill.status = 200
            await plane.advance(61)
            for _ in range(2):
                assert await ask_all(clients) == [200] * 8
            assert ill.taken > taken


async def test_one_that_is_slow_gets_less(tmp_path: Path) -> None:
    async with Behaving().running() as quick, Behaving(pause=asyncio.Event()).running() as slow:
        plane = DataPlane(tmp_path, (route(slow.address, "api", quick.address),))
        async with plane.running():
            clients = await clients_of(plane, 16)
            waiting: list[asyncio.Task[object]] = []
            for _ in range(4):
                for client in clients:
                    if any(task.get_name() == str(id(client)) for task in waiting):
                        continue
                    task = asyncio.create_task(client.get(), name=str(id(client)))
                    await plane.until(lambda: task.done() or slow.taken > len(waiting))  # noqa: B023  # at once
                    if not task.done():
                        waiting.append(task)
            assert slow.taken == len(waiting) <= 2  # as much as is under way at the quick one, and no more
            assert quick.taken >= 48
            assert slow.pause is not None
            slow.pause.set()
            await asyncio.gather(*waiting)


async def test_etcd_says_itself_whether_it_is_well(tmp_path: Path) -> None:
    check = {"health": HealthCheck("/health", interval=1.0, unhealthy=1, healthy=1)}
    async with Behaving(status=503).running() as ill, etcd(tmp_path) as store:
        plane = DataPlane(tmp_path, (route(ill.address, "api", store.address, pool=check),))
        async with plane.running():
            await plane.advance(0.5)
            await plane.until(
                lambda: (
                    [each["state"] for each in plane.upstreams.overview()[0]["addresses"]]
                    == ["unhealthy", "in_service"]
                )
            )
            taken = ill.taken
            for client in await clients_of(plane, 6):
                assert (await client.get("/version")).status == 200
            assert ill.taken == taken

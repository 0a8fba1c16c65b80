"""A data plane over a pool of upstreams, each of which says its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.proxy.upstream import UpstreamSettings
from policies.upstreams import Address
from tests.support.gateway import DataPlane, RawClient, RawUpstream, route, saying

NO = saying(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno")
OK = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Named(RawUpstream):
    """Answers with its name; `answering` may be closed, so that it answers late."""

    def __init__(self, name: str) -> None:
        super().__init__(self.answer)
        self.name = name.encode()
        self.status = 200
        self.answering = asyncio.Event()
        self.answering.set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.request(reader)
            await self.answering.wait()
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (self.status, len(self.name), self.name))


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


@asynccontextmanager
async def plane_over(
    folder: Path,
    *upstreams: RawUpstream | Address,
    pool: Mapping[str, Any] | None = None,
    settings: UpstreamSettings | None = None,
    **changes: Any,
) -> AsyncIterator[DataPlane]:
    """A data plane with one route to all of these."""
    async with AsyncExitStack() as stack:
        found = [
            each if isinstance(each, Address) else await stack.enter_async_context(each.running()) for each in upstreams
        ]
        one = route(found[0], "api", *found[1:], pool=pool or {}, **changes)
        plane = DataPlane(folder, (one,), upstream_settings=settings or UpstreamSettings())
        await stack.enter_async_context(plane.running())
        yield plane


async def closed_address() -> Address:
    async with RawUpstream().running() as address:
        return address


async def client_of(plane: DataPlane, number: int, of: int) -> RawClient:
    """A client whose own address is the one of this number, of so many."""
    name = next(name for each in range(1000) if hash(name := f"edge-{each}") % of == number)
    plane.know(name)
    return await plane.connect(plane.pair(name))


def states(plane: DataPlane) -> list[str]:
    (pool,) = plane.upstreams.overview()
    addresses: Any = pool["addresses"]
    return [each["state"] for each in addresses]


def count(plane: DataPlane, what: str) -> Any:
    return plane.upstreams.overview()[0][what]


async def body(client: RawClient) -> bytes:
    return (await client.get()).body

"""Class "a retry repeats an effect": what may have been acted on is not sent a second time, whatever the failure, and
an upstream that fails is not asked by all at once again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.upstreams import Retries
from tests.support.gateway import DataPlane, Handler, RawUpstream, request_bytes, route


def failing(count: Callable[[bytes], None], answer: bytes) -> Handler:
    """Acts on each request, then answers with this and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)

    return handle


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"garbage\r\n\r\n"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_what_may_have_had_an_effect_is_sent_once(tmp_path: Path, method: str, answer: bytes) -> None:
    acted: list[bytes] = []
    one, two = (RawUpstream(failing(acted.append, answer)) for _ in range(2))
    async with one.running() as first, two.running() as second:
        plane = DataPlane(tmp_path, (route(first, "api", second, retry_503=True),))
        async with plane.running():
            assert (await (await plane.connect()).ask(request_bytes(method, "/pay"))).status == 502
    assert len(acted) == 1


async def test_a_failing_pool_is_not_asked_by_all_again(tmp_path: Path) -> None:
    acted: list[bytes] = []
    going = asyncio.Event()

    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        acted.append(await reader.readuntil(b"\r\n\r\n"))
        await going.wait()

    one, two = RawUpstream(together), RawUpstream(together)
    async with one.running() as first, two.running() as second:
        pool = {"retries": Retries(tries=5, percent=20, least=3)}
        plane = DataPlane(tmp_path, (route(first, "api", second, pool=pool),))
        async with plane.running():
            clients = [await plane.connect() for _ in range(20)]
            for client in clients:
                client.send(request_bytes("GET", "/x"))
            await plane.until(lambda: len(acted) == 20)
            going.set()
            assert [(await client.answer()).status for client in clients] == [502] * 20
    assert len(acted) <= 20 + 4 * 5  # a fifth of them, five times at most

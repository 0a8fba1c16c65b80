"""What is over leaves nothing behind in a data plane: no connection and no request, however it ended."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.proxy.exchange import HttpExchange
from gateway.proxy.http1_connection import Http1Connection
from gateway.proxy.http2_connection import Http2Connection
from gateway.proxy.identify import Caller, Peer
from gateway.standing import Standing
from gateway.streams.registry import Exchange
from policies.model import Answer, Denial, Permit, Query
from tests.fakes.trust import ALLOW, DENY
from tests.support.gateway import DataPlane, Handler, RawClient, RawUpstream, gateway_to, request_bytes
from tests.support.http2 import OK
from tests.support.http2 import connect as connect_http2

_OF_A_CONNECTION = (Http1Connection, Http2Connection, Peer, Caller, Standing)
_OF_A_REQUEST = (HttpExchange, Exchange, Permit, Denial, Query)
CONNECTIONS, REQUESTS = 20, 3
UPGRADE = ("Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")


def living() -> Counter[str]:
    """How many there are of each."""
    gc.collect()
    kinds = {*_OF_A_CONNECTION, *_OF_A_REQUEST}
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in kinds)


def only_things(query: Query) -> Answer:
    return DENY if query.request.path[-1] == "secrets" else ALLOW


def slow_for_some(upstream: RawUpstream) -> Handler:
    """What is asked for `never` gets no answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if b"never" not in await upstream.request(reader):
                writer.write(OK)

    return handle


async def ask(plane: DataPlane, target: str, *lines: str) -> RawClient:
    client = await plane.connect()
    for _ in range(REQUESTS):
        await client.ask(request_bytes("GET", target, *lines))
    return client


async def permitted(plane: DataPlane) -> None:
    (await ask(plane, "/v1/things")).close()


async def denied(plane: DataPlane) -> None:
    (await ask(plane, "/v1/secrets")).close()


async def ambiguous(plane: DataPlane) -> None:
    (await ask(plane, "/v1/%2e%2e/things")).close()


async def not_upgraded(plane: DataPlane) -> None:
    client = await plane.connect()
    answer = await client.ask(request_bytes("GET", "/v1/things", *UPGRADE, f"Sec-WebSocket-Key: {id(client):022}=="))
    assert answer.reason == "upgrade_refused"


async def left_before_the_answer(plane: DataPlane) -> None:
    client = await plane.connect()
    client.send(request_bytes("GET", "/v1/never"))
    await plane.until(lambda: plane.registry.open_count == 1)
    client.close()
    await plane.until(lambda: plane.registry.open_count == 0)


async def by_http2(plane: DataPlane) -> None:
    client = await connect_http2(plane)
    for target in ("/v1/things", "/v1/secrets"):
        await client.get(target)
    client.close()


async def without_a_request(plane: DataPlane) -> None:
    client = await plane.connect()
    await plane.until(lambda: plane.listener.open_count == 1)
    client.close()


@pytest.mark.parametrize(
    "visit", [permitted, denied, ambiguous, not_upgraded, left_before_the_answer, by_http2, without_a_request]
)
async def test_connections_leave_nothing(visit: Callable[[DataPlane], Awaitable[None]], tmp_path: Path) -> None:
    upstream = RawUpstream()
    upstream.handler = slow_for_some(upstream)
    async with gateway_to(upstream, tmp_path) as plane:
        plane.engine.answer = only_things
        before = living()
        for _ in range(CONNECTIONS):
            await visit(plane)
            await plane.until(lambda: plane.listener.open_count == 0)
        plane.recorded.entries.clear()
        with suppress(TimeoutError):  # what was aborted ends with a later turn of the loop
            await plane.until(lambda: living() <= before)
        assert living() - before == Counter()

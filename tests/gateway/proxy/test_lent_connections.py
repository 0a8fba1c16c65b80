"""A connection to an upstream that one exchange is done with serves the next one whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from gateway.proxy.headers import Field
from gateway.proxy.http1 import Limits, ResponseHead, ResponseReader
from gateway.proxy.upstream import UpstreamSettings
from gateway.proxy.upstream_connection import Sink, UpstreamConnection
from gateway.upstreams.endpoint import Endpoint
from gateway.upstreams.pool import LivePool
from policies.upstreams import Address, Pool
from tests.fakes.clock import ManualClock

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Transport(asyncio.Transport):
    """Tells whether it is read."""

    reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


class FullClient:
    """A sink whose client's buffer is filled by whatever comes."""

    def __init__(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self.whole = False

    def response(self, head: ResponseHead, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        self._upstream.pause_reading()
        self.whole = done


def test_an_answer_that_fills_the_client_does_not_stop_the_next_exchanges_answer() -> None:
    live, transport = LivePool(Pool("p"), UpstreamSettings(), ManualClock()), Transport()
    endpoint = Endpoint(live, Address("127.0.0.1", 1), "127.0.0.1")
    connection = UpstreamConnection(endpoint, None, ResponseReader(Limits(1 << 14, 64)))
    connection.connection_made(transport)
    client = FullClient(connection)
    connection.lend(b"GET", cast(Sink, cast(Any, client)))
    connection.request_done = True
    connection.data_received(ANSWER)
    assert client.whole
    assert endpoint.take(None) is connection
    assert endpoint.active == 0
    assert transport.reading

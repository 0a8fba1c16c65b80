"""What a health check makes of an answer: only its status counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from foundation.faults import Fault
from gateway.proxy.headers import Field
from gateway.proxy.http1 import ResponseHead
from gateway.proxy.upstream_connection import UpstreamConnection
from gateway.upstreams.budget import Failure
from gateway.upstreams.endpoint import Endpoint


class ProbeSink:
    """Implements `upstream_connection.Sink`. `outcome` is why the check fails; an empty text when it passes."""

    source = None

    def __init__(self) -> None:
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connected(self, upstream: UpstreamConnection) -> None:
        pass

    def failed(self, fault: Fault, failure: Failure, at: Endpoint | None) -> None:
        self._end(fault.reason.meaning)

    def informational(self, head: ResponseHead) -> None:
        pass

    def response(self, head: ResponseHead, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        self._end("" if 200 <= head.status <= 299 else f"status {head.status}")

    def response_data(self, payload: bytes, done: bool, trailers: Sequence[Field] = ()) -> None:
        pass

    def upgraded(self, head: ResponseHead, data: bytes) -> None:
        self._end("status 101")

    def tunnelled(self, data: bytes) -> None:
        pass

    def broken(self, fault: Fault) -> None:
        pass

    def upstream_full(self) -> None:
        pass

    def upstream_drained(self) -> None:
        pass

    def _end(self, outcome: str) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

"""What a gateway tells operators of its upstreams, and upstreams of its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foundation.api import Answer, ApiRoute, Call
from gateway.api.operators import AskWorkers
from gateway.upstreams.telling import merged


class UpstreamsApi:
    """`keys` gives the JWK set that verifies assertions (`gateway.proxy.assertion`)."""

    def __init__(self, ask: AskWorkers, keys: Callable[[], Mapping[str, Any]]) -> None:
        self._ask = ask
        self._keys = keys

    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute("upstreams.list", "GET", "/v1/upstreams", self.list, "Pools, their addresses, and why one is out"),
            ApiRoute(
                "assertions.list", "GET", "/v1/assertions/keys", self.keys, "The JWK set that verifies assertions"
            ),
        ]

    async def list(self, call: Call) -> Answer:
        return Answer.of({"items": merged([told.answer for told in await self._ask("upstreams")])})

    async def keys(self, call: Call) -> Answer:
        return Answer.of(dict(self._keys()))

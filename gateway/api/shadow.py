"""The operators' way to try a candidate revision beside the one in force."""

from __future__ import annotations

import asyncio

from foundation.api import Answer, ApiRoute, Call
from gateway.shadow.runner import ShadowRunner
from policies.archive import MAX_ARCHIVE_BYTES

_PATH = "/v1/policy/shadow"
_OCTETS = "application/octet-stream"


class ShadowApi:
    """Handlers over this gateway's shadow evaluation."""

    def __init__(self, runner: ShadowRunner) -> None:
        self._runner = runner

    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute("shadow.show", "GET", _PATH, self.show, "How a candidate revision would decide"),
            ApiRoute(
                "shadow.start", "POST", _PATH, self.start, "Try a signed revision", MAX_ARCHIVE_BYTES, accepts=_OCTETS
            ),
            ApiRoute("shadow.stop", "DELETE", _PATH, self.stop, "Stop trying it; what was found stays"),
        ]

    async def show(self, call: Call) -> Answer:
        return Answer.of(await asyncio.to_thread(self._runner.status))

    async def start(self, call: Call) -> Answer:
        return Answer.of(await self._runner.start(call.body, str(call.caller.id)))

    async def stop(self, call: Call) -> Answer:
        return Answer.of(await self._runner.stop(str(call.caller.id)))

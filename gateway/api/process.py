"""The operators' way to the main process itself: what runs, have it reload or upgrade, and what came of that.

An errand outlasts a call, and an upgrade the process that was asked. So both are answered at once with a number, and
how they ended is read from `GET /v1/gateway/process`: of the same `instance` by that number; another `instance` has
begun with the installed code and everything read anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from foundation.api import Answer, ApiRoute, Call
from gateway.errands import Asked, Errands

_RELOAD = "/v1/gateway/reload"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """Which main process this is. `instance` is another after every start and every upgrade; `version` is of the code
    that it began with."""

    instance: str
    pid: int
    version: str


class Workforce(NamedTuple):
    """How many workers carry the data plane, should carry it, and let end what they carry."""

    ready: int
    wanted: int
    retiring: int


class ProcessApi:
    """`judge` says what a reload would take up now, or raises the `Fault` that it would be refused with."""

    def __init__(
        self,
        incarnation: Incarnation,
        errands: Errands,
        workforce: Callable[[], Workforce],
        judge: Callable[[], tuple[str, ...]],
    ) -> None:
        self._incarnation = incarnation
        self._errands = errands
        self._workforce = workforce
        self._judge = judge

    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute(
                "gateway.show", "GET", "/v1/gateway/process", self.show, "The main process, and what was asked of it"
            ),
            ApiRoute("gateway.reload", "GET", _RELOAD, self.check, "What a reload would take up"),
            ApiRoute(
                "gateway.reload", "POST", _RELOAD, self.reload, "Read certificate, root, policy key, settings anew"
            ),
            ApiRoute(
                "gateway.upgrade",
                "POST",
                "/v1/gateway/upgrade",
                self.upgrade,
                "Go on with the code that is installed now",
            ),
        ]

    async def show(self, call: Call) -> Answer:
        return Answer.of(self._told())

    async def check(self, call: Call) -> Answer:
        return Answer.of({"taken": list(self._judge())})

    async def reload(self, call: Call) -> Answer:
        return self._ask(Asked.RELOAD, call)

    async def upgrade(self, call: Call) -> Answer:
        return self._ask(Asked.UPGRADE, call)

    def _ask(self, asked: Asked, call: Call) -> Answer:
        errand = self._errands.ask(asked, str(call.caller.id))
        return Answer.of({"number": errand.number, **self._told()}, 202)

    def _told(self) -> dict[str, Any]:
        return {
            **asdict(self._incarnation),
            "workers": self._workforce()._asdict(),
            "errands": [each.to_json() for each in self._errands.known],
        }

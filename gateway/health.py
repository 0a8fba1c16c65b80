"""`/healthz`, `/readyz` and `/metrics`, on loopback alone: for the service manager and the scraper of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics import exposition as openmetrics

from foundation.fields import Fields
from gateway.merging import Collector

_OPENMETRICS = "application/openmetrics-text"

# Each part's own answer to "are you ready": an empty text, or what it waits for.
Readiness = Mapping[str, Callable[[], str]]
# What somebody should look at, by who says so.
Notes = Callable[[], Awaitable[Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Section `[health]`."""

    host: str = "127.0.0.1"
    port: int = 9440

    @classmethod
    def parse(cls, fields: Fields) -> HealthSettings:
        settings = cls(fields.text("host", "127.0.0.1"), fields.integer("port", 9440, least=0, most=65535))
        if not _is_loopback(settings.host):
            raise fields.fault("host", "expected a loopback address: these pages ask for no credentials")
        fields.finish()
        return settings


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def exposition(registry: Collector, accept: str) -> tuple[bytes, str]:
    """The metrics, and their media type: OpenMetrics for a scraper that accepts it, for that alone knows exemplars."""
    if _OPENMETRICS in accept:
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # the library's
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_LATEST


def health_app(
    gather: Callable[[], Awaitable[Collector]], readiness: Readiness, notes: Notes | None = None
) -> web.Application:
    """An application that says whether the process lives, whether it is ready and why not, and its metrics. `notes` are
    what somebody should look at, and no reason to send requests elsewhere."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        waiting = {part: text for part, ask in readiness.items() if (text := ask())}
        told = {"ready": not waiting, "waiting": waiting, "notes": await notes() if notes else {}}
        return web.json_response(told, status=503 if waiting else 200)

    async def metrics(request: web.Request) -> web.Response:
        body, kind = exposition(await gather(), request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app

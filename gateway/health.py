"""`/healthz`, `/readyz` and `/metrics`, on loopback alone: for the service manager and the scraper of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from foundation.fields import Fields
from gateway.merging import Collector

# Each part's own answer to "are you ready": an empty text, or what it waits for.
Readiness = Mapping[str, Callable[[], str]]


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


def health_app(gather: Callable[[], Awaitable[Collector]], readiness: Readiness) -> web.Application:
    """An application that says whether the process lives, whether it is ready and why not, and its metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        waiting = {part: text for part, ask in readiness.items() if (text := ask())}
        return web.json_response({"ready": not waiting, "waiting": waiting}, status=503 if waiting else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(await gather()), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app

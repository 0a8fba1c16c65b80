"""An upstream over TLS that says whose certificate it saw."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from policies.upstreams import Address


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[tuple[Address, list[str]]]:
    """A real server, and the SPIFFE ID that each request's client proved."""
    proven: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        certificate = request.get_extra_info("peercert") or {}
        proven.append(next((value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"), ""))
        return web.Response()

    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield Address(*runner.addresses[0][:2]), proven
    finally:
        await runner.cleanup()

"""The listeners of the main process: health, enrolment, the API over TLS, and the API at a socket of this machine."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from aiohttp import web

from foundation.api import ApiRoute, Identify, api_application, public_application
from foundation.bearer import BearerVerifier
from foundation.callers import CertificateCallers, LocalCallers
from foundation.listening import listen, listen_unix
from foundation.serving import serve_api, serve_unix
from gateway.api.process import ProcessApi
from gateway.api.shadow import ShadowApi
from gateway.directory import SnapshotDirectory
from gateway.health import health_app
from gateway.sockets import Sockets
from gateway.wiring.authority import AuthorityParts
from gateway.wiring.base import Base
from gateway.wiring.gateway import GatewayParts
from gateway.wiring.settings import AuthoritySections, Settings


class _Address(Protocol):
    """Where to listen."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class Listeners:
    """Opened in two steps: health first, so that a start can be watched; the rest when everything is ready. `stack`
    closes them, and `sockets` hands out what a main process before this one left."""

    def __init__(
        self,
        settings: Settings,
        stack: AsyncExitStack,
        sockets: Sockets,
        base: Base,
        authority: AuthorityParts,
        gateway: GatewayParts,
        process: ProcessApi,
    ) -> None:
        self._settings = settings
        self._stack = stack
        self._sockets = sockets
        self._base = base
        self._authority = authority
        self._gateway = gateway
        self._process = process

    async def open_health(self, is_started: Callable[[], bool]) -> None:
        """Readiness waits for `is_started`, too."""
        time, gateway, certificates = self._base.time, self._gateway, self._authority.certificates

        def certificate() -> str:
            return "a valid certificate of our own" if certificates.expired(time.now()) else ""

        waits = {
            "policy and facts": lambda: gateway.follower.waits_for,
            "workers": lambda: gateway.workers.waits_for,
            "certificate": certificate,
            "listeners": lambda: "" if is_started() else "the start",
        }
        health = health_app(gateway.watch.gather, waits, gateway.watch.notes)
        (listening,) = self._take("health", self._settings.health)
        await self._stack.enter_async_context(_serve_plain(health, listening))

    async def open(self) -> None:
        """Enrolment where the authority is here, and the API."""
        settings, certificates, clock = self._settings, self._authority.certificates, self._base.time
        if isinstance(settings.authority, AuthoritySections):
            enrolment = public_application(self._authority.enrolment_routes, clock=clock)
            await self._serve("enrolment", enrolment, certificates.strangers, settings.authority.enrolment)
        routes = self._routes()
        api = self._api(routes, self._callers().identify)
        await self._serve("api", api, certificates.proven, settings.api)
        local, path = self._api(routes, LocalCallers(settings.system.trust_domain).identify), settings.api.socket
        (unix,) = self._sockets.take(f"local {path}", lambda: [listen_unix(path)])
        await self._stack.enter_async_context(serve_unix(local, path, listening=unix))

    def _callers(self) -> CertificateCallers:
        issuers = self._settings.api.issuers
        directory = self._authority.directory or SnapshotDirectory(self._gateway.store)
        bearer = BearerVerifier(issuers) if issuers else None
        return CertificateCallers(self._settings.system.trust_domain, directory, self._base.time, bearer)

    def _api(self, routes: Sequence[ApiRoute], identify: Identify) -> web.Application:
        return api_application(routes, identify, self._gateway.authorizer, clock=self._base.time)

    def _routes(self) -> list[ApiRoute]:
        gateway = self._gateway
        return [
            *self._authority.routes,
            *gateway.operators.routes(),
            *self._process.routes(),
            *gateway.upstreams.routes(),
            *gateway.access.routes(),
            *ShadowApi(gateway.shadow).routes(),
        ]

    async def _serve(
        self, name: str, application: web.Application, context: Callable[[], ssl.SSLContext], where: _Address
    ) -> None:
        (listening,) = self._take(name, where)
        serving = serve_api(application, context, where.host, where.port, listening=listening)
        await self._stack.enter_async_context(serving)

    def _take(self, name: str, where: _Address) -> Sequence[socket.socket]:
        return self._sockets.take(f"{name} {where.host} {where.port}", lambda: [listen(where.host, where.port)])


@asynccontextmanager
async def _serve_plain(application: web.Application, listening: socket.socket) -> AsyncIterator[None]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield
    finally:
        await runner.cleanup()

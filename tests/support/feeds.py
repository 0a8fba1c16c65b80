"""The authority's feed as a gateway elsewhere follows it, and servers that are not quite an authority."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from foundation.api import ApiRoute, Call, Stream, public_application
from foundation.identifiers import Kind
from foundation.identity import Change, Heartbeat
from foundation.ports import ChangeFeed
from foundation.serving import ListenerLimits, serve_api
from foundation.tls import KeyPair, client_context, server_context
from gateway.feed import SILENCE, HttpFeed
from tests.support.installation import Installation

AUTHORITY = "sallyport"
SHORT = ListenerLimits(drain=0.1)  # a handler that waits for ever is not waited for


def following(
    site: Installation,
    pair: KeyPair,
    port: int,
    *,
    context: Callable[[], ssl.SSLContext] | None = None,
    heard: Callable[[float], None] = lambda at: None,
    silence: float = SILENCE,
    host: str = "localhost",
) -> HttpFeed:
    """The feed at `port` of this machine, for the gateway that `pair` proves."""
    own = context or (lambda: client_context(site.root_pem, pair=pair))
    return HttpFeed(f"{host}:{port}", site.id(AUTHORITY, Kind.GATEWAY), own, heard, silence=silence)


@asynccontextmanager
async def here(site: Installation) -> AsyncIterator[ChangeFeed]:
    """The feed in the authority's own process."""
    yield site.authority.feed


@asynccontextmanager
async def elsewhere(site: Installation) -> AsyncIterator[ChangeFeed]:
    """The same feed, over HTTPS."""
    pair = await site.certify("eu-1", Kind.GATEWAY)
    async with site.serving(limits=SHORT) as address:
        yield following(site, pair, address.port)


@asynccontextmanager
async def answering(
    site: Installation, pieces: Callable[[], AsyncIterator[bytes]], pair: str = "server", host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A server with the certificate `pair` of `site` that answers a follower with `pieces`; its port."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
        yield pieces()

    async def follow(_: Call) -> Stream:
        return Stream(opened())

    route = ApiRoute("feed.follow", "GET", "/v1/feed", follow)
    context = server_context(_pair(site, pair), client_roots=site.root_pem)
    async with serve_api(public_application([route]), lambda: context, host, 0, SHORT) as (_, port):
        yield port


def _pair(site: Installation, name: str) -> KeyPair:
    own = site.pair(name)
    return own if own.certificate.exists() else KeyPair(site.folder / f"{name}.pem", site.folder / f"{name}.key")


async def until_heartbeat(changes: AsyncIterator[Change]) -> list[Change]:
    """Everything up to the next heartbeat, which is last."""
    found = []
    async for change in changes:
        found.append(change)
        if isinstance(change, Heartbeat):
            break
    return found

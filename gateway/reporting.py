"""Tells an authority elsewhere what is in force here, so that who revokes learns which gateways have not followed.

One report at a time: with every change, and every few seconds to say that we are there. It is told nothing but numbers;
that we are who we say is proven by our certificate, and that it is the authority, by its own (`gateway.feed`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

import aiohttp

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import SnapshotNumbers
from gateway.feed import CONNECT_SECONDS, MAX_PROBLEM_BYTES, check_authority

EVERY = 3.0
ANSWER_SECONDS = 5.0
PAUSE = 1.0
_LOG = logging.getLogger(__name__)


class Reporter:
    """`address`, `authority` and `context` are those of `gateway.feed.HttpFeed`. Keep `run` running."""

    def __init__(self, address: str, authority: SpiffeId, context: Callable[[], ssl.SSLContext], clock: Clock) -> None:
        self._address = address
        self._authority = authority
        self._context = context
        self._clock = clock
        self._numbers: SnapshotNumbers | None = None
        self._news = asyncio.Event()

    def in_force(self, numbers: SnapshotNumbers) -> None:
        """All of this is in force in every worker."""
        if numbers != self._numbers:
            self._numbers = numbers
            self._news.set()

    async def run(self) -> None:
        """Report until cancelled. What fails is tried again: until then the authority says that we are behind."""
        failing = False
        while True:
            try:
                await self._report()
                failing = False
            except (Fault, aiohttp.ClientError, TimeoutError, OSError) as error:
                if not failing:
                    _LOG.warning("the authority does not hear what is in force here: %s", error)
                failing = True
            await self._clock.sleep(PAUSE)

    async def _report(self) -> None:
        """Over one connection, for as long as it, and our certificate, last."""
        context = self._context()
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=context, limit=1)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while context is self._context():
                await self._wait()
                if self._numbers is not None:
                    await self._tell(session, self._numbers)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(EVERY):
                await self._news.wait()
        except TimeoutError:
            return
        finally:
            self._news.clear()

    async def _tell(self, session: aiohttp.ClientSession, numbers: SnapshotNumbers) -> None:
        url = f"https://{self._address}/v1/feed/acknowledged"
        async with session.post(url, json=numbers._asdict(), allow_redirects=False) as response:
            await check_authority(response, self._authority, self._address)
            await response.content.read(MAX_PROBLEM_BYTES)

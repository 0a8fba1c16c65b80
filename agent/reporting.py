"""Delivers a health report to the authority (`POST /v1/node/health`), and learns what time it is there."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import closing

from agent.channel import Channel
from agent.settings import Address
from foundation.clock import Clock
from foundation.fields import Fields
from foundation.reasons import Reason

PATH = "/v1/node/health"
_MAX_ANSWER_BYTES = 4096
_LATEST = 1e11


class AuthorityReports:
    """`context` gives the node's present TLS context; it and the connection are made on threads, for each report anew:
    reports are rare."""

    def __init__(self, address: Address, context: Callable[[], ssl.SSLContext], timeout: float, clock: Clock) -> None:
        self._address = address
        self._context = context
        self._timeout = timeout
        self._clock = clock
        self._skew: float | None = None

    async def deliver(self, report: bytes) -> None:
        """Raises `Fault`: as `agent.channel.Channel.post`."""
        self._skew = await asyncio.to_thread(self._post, report)

    def clock_skew(self) -> float | None:
        """By how many seconds our clock was ahead of the authority's at the last delivery, give or take half of what it
        took; None before the first."""
        return self._skew

    def _post(self, report: bytes) -> float:
        with closing(Channel(self._address, self._context(), self._timeout)) as channel:
            sent = self._clock.now()
            answer = channel.post(PATH, report)
            received = self._clock.now()
        return (sent + received) / 2 - _time_of(answer)


def _time_of(answer: bytes) -> float:
    """Raises `Fault(MESSAGE_MALFORMED)`."""
    fields = Fields.from_json(answer, "answer", Reason.MESSAGE_MALFORMED, max_bytes=_MAX_ANSWER_BYTES)
    at = fields.number("at", most=_LATEST)
    fields.finish()
    return at

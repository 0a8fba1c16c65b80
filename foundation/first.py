"""Waiting for the first of several."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*awaited: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is over; the others are cancelled, and over too when this returns. Raises what that one
    raised."""
    waits = [asyncio.ensure_future(each) for each in awaited]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

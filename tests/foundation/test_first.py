"""The first of several waits ends all of them."""

from __future__ import annotations

import asyncio

import pytest

from foundation.first import first_of


async def lasting(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("cancelled")


async def test_the_others_are_over_when_it_returns() -> None:
    ended: list[str] = []
    await first_of(asyncio.sleep(0), lasting(ended), lasting(ended))
    assert ended == ["cancelled"] * 2


async def test_what_the_first_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("it failed")

    ended: list[str] = []
    with pytest.raises(ValueError, match="it failed"):
        await first_of(lasting(ended), fail())
    assert ended == ["cancelled"]


async def test_who_gives_up_waiting_gives_all_up() -> None:
    ended: list[str] = []
    waiting = asyncio.ensure_future(first_of(lasting(ended), lasting(ended)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == ["cancelled"] * 2

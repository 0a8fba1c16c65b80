"""Which gateways have a revocation in force, and who is waited for."""

from __future__ import annotations

import asyncio

from foundation.identifiers import Kind
from foundation.identity import SnapshotNumbers
from pki.presence import FOLLOWS_SECONDS, Presence
from tests.fakes.clock import ManualClock
from tests.fakes.trust import spiffe

ONE, OTHER = spiffe("gw-1", Kind.GATEWAY), spiffe("gw-2", Kind.GATEWAY)
LONG = 600.0  # seconds; a test that waits for them hangs


def numbers(revocations: int) -> SnapshotNumbers:
    return SnapshotNumbers(1, revocations, 1, 1)


async def test_who_has_said_so_is_not_behind() -> None:
    presence = Presence(ManualClock())
    presence.report(ONE, numbers(7))
    assert presence.behind(7, [ONE]) == ()
    (behind,) = presence.behind(8, [ONE])
    assert (behind.gateway, behind.number, behind.heard) == (ONE, 7, ManualClock().now())


async def test_who_was_never_heard_is_behind_and_not_waited_for() -> None:
    (behind,) = await Presence(ManualClock()).wait(1, [ONE], LONG)
    assert (behind.gateway, behind.number, behind.heard) == (ONE, 0, 0.0)


async def test_who_follows_is_waited_for_until_it_says_so() -> None:
    presence = Presence(ManualClock())
    for each in (ONE, OTHER):
        presence.report(each, numbers(7))
    waiting = asyncio.ensure_future(presence.wait(8, [ONE, OTHER], LONG))
    await asyncio.sleep(0)
    presence.report(ONE, numbers(8))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    presence.report(OTHER, numbers(9))
    assert await waiting == ()


async def test_the_wait_is_bounded() -> None:
    presence = Presence(ManualClock())
    presence.report(ONE, numbers(7))
    assert [each.gateway for each in await presence.wait(8, [ONE], 0.01)] == [ONE]


async def test_the_gateway_beside_the_authority_stands_in_no_inventory() -> None:
    presence = Presence(ManualClock())
    for number in (1, 2):
        presence.report_here(ONE, numbers(number))
    assert presence.here == (ONE,)
    assert presence.behind(2, presence.here) == ()


async def test_who_has_gone_silent_is_not_waited_for() -> None:
    clock = ManualClock()
    presence = Presence(clock)
    presence.report(ONE, numbers(7))
    clock.advance(FOLLOWS_SECONDS + 1)
    assert [each.number for each in await presence.wait(8, [ONE], LONG)] == [7]

"""What every `foundation.ports.ChangeFeed` does: the authority's own, and the same one followed over HTTPS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest

from foundation.identifiers import SpiffeId
from foundation.identity import (
    Change,
    Heartbeat,
    IdentityChanged,
    PolicyPublished,
    PostureChanged,
    Revocation,
    SnapshotNumbers,
    State,
)
from foundation.ports import ChangeFeed
from pki.entries import Expected
from pki.feed import HEARTBEAT_SECONDS, POLL_SECONDS
from pki.inventory import Description
from pki.revocation_reason import RevocationReason
from tests.support.feeds import elsewhere, here, until_heartbeat
from tests.support.installation import Installation, installation
from tests.support.site import ACTOR, attest_again, attested

WHY = RevocationReason.KEY_COMPROMISE


class Backend(Protocol):
    def __call__(self, site: Installation) -> AbstractAsyncContextManager[ChangeFeed]: ...


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as made, asyncio.timeout(60):
        yield made


@pytest.fixture(params=[pytest.param(here, id="here"), pytest.param(elsewhere, id="elsewhere")])
async def feed(request: pytest.FixtureRequest, site: Installation) -> AsyncIterator[ChangeFeed]:
    backend: Backend = request.param
    async with backend(site) as opened:
        yield opened


async def expect(site: Installation, name: str) -> SpiffeId:
    return (await site.authority.inventory.add(Expected(site.id(name)), ACTOR)).id


async def catch_up(feed: ChangeFeed, since: SnapshotNumbers | None = None) -> list[Change]:
    async with feed.follow(since) as changes:
        return await until_heartbeat(changes)


def records(changes: list[Change]) -> dict[str, State]:
    return {change.record.id.name: change.record.state for change in changes if isinstance(change, IdentityChanged)}


async def test_who_knows_nothing_gets_the_whole_state(site: Installation, feed: ChangeFeed) -> None:
    node, other = await expect(site, "a"), await expect(site, "b")
    passed = attested(site.clock, "a")
    await attest_again(site.authority, node, passed)
    (revoked,) = await site.authority.revocations.revoke_identity(other, WHY, ACTOR)
    await site.authority.publish_policy(3, bytes(range(256)) * 2000, ACTOR)
    changes = await catch_up(feed)
    numbers = await site.authority.feed.numbers()

    assert records(changes)["a"] is State.EXPECTED
    assert records(changes)["b"] is State.REVOKED
    assert [change for change in changes if isinstance(change, Revocation)] == [revoked]
    (posture,) = [change for change in changes if isinstance(change, PostureChanged) and change.id == node]
    assert (posture.posture.attestation, posture.attested_until) == (passed.attestation, passed.until)
    assert PolicyPublished(3, bytes(range(256)) * 2000) in changes
    assert changes[-1] == Heartbeat(site.clock.now(), numbers)


async def test_who_has_been_here_gets_what_it_missed(site: Installation, feed: ChangeFeed) -> None:
    await expect(site, "a")
    other = await expect(site, "b")
    since = (await catch_up(feed))[-1]
    assert isinstance(since, Heartbeat)
    labels = {"é": "ü", '"': "\n"}
    await site.authority.inventory.describe(other, Description(site="t", labels=labels), ACTOR)
    (changed,) = [change for change in await catch_up(feed, since.numbers) if isinstance(change, IdentityChanged)]
    assert (changed.record.id, changed.record.site, changed.record.labels) == (other, "t", labels)


async def test_commits_are_told_as_they_happen(site: Installation, feed: ChangeFeed) -> None:
    node = await expect(site, "a")
    async with feed.follow(None) as changes:
        await until_heartbeat(changes)
        (revoked,) = await site.authority.revocations.revoke_identity(node, WHY, ACTOR)
        assert await anext(changes) == revoked
        assert isinstance(await anext(changes), IdentityChanged)
        await site.authority.publish_policy(1, b"x", ACTOR)
        assert await anext(changes) == PolicyPublished(1, b"x")


async def test_revocations_are_told_before_anything_else(
    site: Installation, feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pki.feed.PAGE", 2)
    since = await site.authority.feed.numbers()
    for name in "abcde":
        await site.authority.revocations.revoke_identity(await expect(site, name), WHY, ACTOR)
    await site.authority.publish_policy(1, b"x", ACTOR)
    for begun in (None, since):
        kinds = [isinstance(change, Revocation) for change in await catch_up(feed, begun)]
        assert kinds[:5] == [True] * 5
        assert not any(kinds[5:])


async def test_heartbeats_come_by_the_clock(site: Installation, feed: ChangeFeed) -> None:
    async with feed.follow(None) as changes:
        await until_heartbeat(changes)
        began = site.clock.now()
        following = asyncio.ensure_future(anext(changes))
        while not following.done():
            await asyncio.sleep(0)
            site.clock.advance(POLL_SECONDS / 10)
        beat = following.result()
        assert isinstance(beat, Heartbeat)
        assert beat.at >= began + HEARTBEAT_SECONDS


async def test_who_is_ahead_begins_anew(site: Installation, feed: ChangeFeed) -> None:
    node = await expect(site, "a")
    changes = await catch_up(feed, SnapshotNumbers(0, 99, 0, 0))
    assert node.name in records(changes)


async def test_two_follow_at_once_and_either_may_leave(site: Installation, feed: ChangeFeed) -> None:
    node = await expect(site, "a")
    async with feed.follow(None) as stays:
        await until_heartbeat(stays)
        async with feed.follow(None) as leaves:
            await until_heartbeat(leaves)
        await site.authority.inventory.quarantine(node, ACTOR)
        changed = await anext(stays)
        assert isinstance(changed, IdentityChanged)
        assert changed.record.state is State.QUARANTINED

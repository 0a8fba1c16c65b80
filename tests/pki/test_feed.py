"""The feed: what a follower misses it is sent, what happens it is told, and who was restored begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identity import (
    AttestationClass,
    Change,
    Heartbeat,
    IdentityChanged,
    PolicyPublished,
    PostureChanged,
    Renewal,
    Revocation,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from pki import feed as feed_module
from pki.authority import Authority
from pki.books import Part, read_numbers
from pki.entries import Attested
from pki.feed import HEARTBEAT_SECONDS, POLL_SECONDS
from pki.inventory import Description
from pki.revocation import LIFTED_SERIAL
from pki.revocation_reason import RevocationReason
from tests.fakes.audit import MemoryAuditLog
from tests.support.site import ACTOR, Site, attest_again, attested, open_site

WHY = RevocationReason.KEY_COMPROMISE


async def until_heartbeat(changes: AsyncIterator[Change]) -> list[Change]:
    """Everything up to the next heartbeat, which is last."""
    found = []
    async for change in changes:
        found.append(change)
        if isinstance(change, Heartbeat):
            break
    return found


async def catch_up(site: Site, since: SnapshotNumbers | None = None) -> list[Change]:
    async with site.authority.feed.follow(since) as changes:
        return await until_heartbeat(changes)


async def test_who_knows_nothing_gets_the_whole_state(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    issued = await site.issue(node)
    await site.authority.revocations.revoke_identity(other, WHY, ACTOR)
    await site.authority.publish_policy(3, b"bundle", ACTOR)
    changes = await catch_up(site)

    records = {change.record.id: change.record for change in changes if isinstance(change, IdentityChanged)}
    assert (records[node].state, records[other].state) == (State.ACTIVE, State.REVOKED)
    assert [change.id for change in changes if isinstance(change, Revocation)] == [other]
    (posture,) = [change for change in changes if isinstance(change, PostureChanged)]
    assert (posture.id, posture.attested_until) == (node, issued.attested_until)
    assert PolicyPublished(3, b"bundle") in changes
    assert changes[-1] == Heartbeat(site.clock.now(), await site.authority.feed.numbers())


async def test_who_has_been_here_gets_what_it_missed(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    since = await site.authority.feed.numbers()
    await site.authority.inventory.describe(other, Description(site="s"), ACTOR)
    await site.authority.inventory.describe(other, Description(site="t"), ACTOR)
    changes = await catch_up(site, since)
    assert [change.record.site for change in changes if isinstance(change, IdentityChanged)] == ["t"]
    assert node not in [change.record.id for change in changes if isinstance(change, IdentityChanged)]


async def test_commits_are_told_as_they_happen(site: Site) -> None:
    node = await site.expect()
    async with site.authority.feed.follow(None) as changes:
        await until_heartbeat(changes)
        await site.authority.revocations.revoke_identity(node, WHY, ACTOR)
        revoked = await anext(changes)
        assert isinstance(revoked, Revocation)
        assert revoked.id == node
        changed = await anext(changes)
        assert isinstance(changed, IdentityChanged)
        await site.authority.publish_policy(1, b"x", ACTOR)
        assert await anext(changes) == PolicyPublished(1, b"x")


async def test_a_moved_deadline_is_told_under_the_old_number(site: Site) -> None:
    node = await site.expect()
    await attest_again(site.authority, node, attested(site.clock, node.name))
    async with site.authority.feed.follow(None) as changes:
        await until_heartbeat(changes)
        number = (await site.authority.feed.numbers()).postures
        await attest_again(site.authority, node, attested(site.clock, node.name))
        moved = await anext(changes)
        assert isinstance(moved, PostureChanged)
        assert (moved.number, moved.posture.verdict) == (number, Verdict.PASSED)


async def test_heartbeats_come_by_the_clock(site: Site) -> None:
    async with site.authority.feed.follow(None) as changes:
        await until_heartbeat(changes)
        following = asyncio.ensure_future(anext(changes))
        while not following.done():
            await asyncio.sleep(0)
            site.clock.advance(POLL_SECONDS)
        assert isinstance(following.result(), Heartbeat)
        assert HEARTBEAT_SECONDS <= 5


async def test_another_process_is_heard_by_looking(site: Site) -> None:
    node = await site.expect()
    other = await Authority.open(site.settings, site.database, MemoryAuditLog(), site.clock)
    async with site.authority.feed.follow(None) as changes:
        await until_heartbeat(changes)
        following = asyncio.ensure_future(anext(changes))
        await other.revocations.revoke_identity(node, WHY, ACTOR)
        while not following.done():
            await asyncio.sleep(0)
            site.clock.advance(POLL_SECONDS / 10)
        assert isinstance(following.result(), Revocation)


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_pages_of_any_size_end_in_the_same_state(site: Site, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(feed_module, "PAGE", page)
    nodes = [await site.expect(f"n{i}") for i in range(5)]
    for node in nodes:
        await site.issue(node)
    await site.authority.revocations.revoke_identity(nodes[2], WHY, ACTOR)
    await site.authority.revocations.revoke_identity(nodes[4], WHY, ACTOR)
    store = SnapshotStore()
    for change in await catch_up(site):
        store.apply(change)
    assert set(store.current.postures) == set(nodes)
    assert set(store.current.revoked_identities) == {nodes[2], nodes[4]}
    assert store.current.numbers == await site.authority.feed.numbers()


async def test_a_lifted_revocation_keeps_its_number_and_hurts_nobody(site: Site) -> None:
    node = await site.expect()
    since = await site.authority.feed.numbers()
    await site.authority.revocations.revoke_identity(node, WHY, ACTOR)
    await site.authority.revocations.admit(node, ACTOR)
    await site.issue(node)
    for begun in (None, since):
        store = SnapshotStore()
        for change in await catch_up(site, begun):
            store.apply(change)
        assert node not in store.current.revoked_identities
        assert store.current.revocations_number == 1
        assert LIFTED_SERIAL in store.current.revoked_serials


async def test_a_gateway_that_watched_ends_where_one_that_slept_does(site: Site) -> None:
    node = await site.expect()
    watching, slept = SnapshotStore(), SnapshotStore()
    acts = [
        lambda: site.issue(node),
        lambda: site.authority.revocations.revoke_identity(node, WHY, ACTOR),
        lambda: site.authority.revocations.admit(node, ACTOR),
        lambda: site.issue(node),
        lambda: site.authority.inventory.latch_failure(node, Reason.QUOTE_DIGEST, ACTOR),
    ]
    since: SnapshotNumbers | None = None
    for act in acts:
        await act()
        for change in await catch_up(site, since):
            watching.apply(change)
        since = watching.current.numbers
    for change in await catch_up(site):
        slept.apply(change)
    assert watching.current.inventory == slept.current.inventory
    assert watching.current.postures == slept.current.postures
    assert watching.current.revoked_identities == slept.current.revoked_identities
    assert watching.current.numbers == slept.current.numbers


async def test_who_is_ahead_of_us_begins_anew(site: Site) -> None:
    node = await site.expect()
    ahead = SnapshotNumbers(0, 99, 0, 0)
    assert node in [change.record.id for change in await catch_up(site, ahead) if isinstance(change, IdentityChanged)]


async def test_restoring_a_backup_repeats_no_number(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        token = await site.authority.tokens.mint(node, 600, ACTOR)
        store = SnapshotStore()
        for change in await catch_up(site):
            store.apply(change)
        # The gateway saw what the backup does not hold: a change of the node under the next numbers.
        before = store.current.numbers
        await site.authority.raise_numbers(ACTOR)
        after = await site.authority.feed.numbers()
        assert min(after[1:]) > max(before) + 1_000_000
        changes = await catch_up(site, before)
        (record,) = [c.record for c in changes if isinstance(c, IdentityChanged) and c.record.id == node]
        assert record.epoch > store.current.inventory[node].epoch + 1_000_000
        with pytest.raises(Fault) as caught:
            await site.authority.tokens.check(token)
        assert caught.value.reason is Reason.TOKEN_USED
        await site.issue(node)
        assert (await site.authority.inventory.get(node)).inventory_number > after.inventory


async def test_followers_are_woken_exactly_when_a_number_moved(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever changes what `numbers` says is announced: a follower would otherwise hear of it a poll later."""
    woken: list[bool] = []
    monkeypatch.setattr(site.authority._books, "_announce", lambda: woken.append(True))
    node, authority = await site.expect(), site.authority
    acts = (
        lambda: authority.inventory.describe(node, Description(site="s"), ACTOR),
        lambda: site.issue(node),
        lambda: authority.tokens.mint(node, 60.0, ACTOR),
        lambda: authority.tokens.void(node, ACTOR),
        lambda: authority.inventory.latch_failure(node, Reason.QUOTE_SELECTION, ACTOR),
        lambda: authority.publish_policy(2, b"bundle", ACTOR),
        lambda: authority.revocations.revoke_identity(node, WHY, ACTOR),
        lambda: authority.raise_numbers(ACTOR),
    )
    for act in acts:
        before = await authority.feed.numbers()
        deadline = await _deadline(site)
        woken.clear()
        await act()
        moved = (await authority.feed.numbers(), await _deadline(site)) != (before, deadline)
        assert bool(woken) is moved


async def _deadline(site: Site) -> int:
    async with site.database.reading() as connection:
        return (await read_numbers(connection))[Part.DEADLINES]


async def test_a_renewal_by_the_ak_on_record_is_told_and_nothing_else_is_one(site: Site) -> None:
    node = await site.expect("a")

    async def told() -> Renewal | None:
        (posture,) = [each for each in await catch_up(site) if isinstance(each, PostureChanged)]
        assert posture.at == site.clock.now()
        return posture.renewal

    first = await site.issue(node)
    assert await told() is None
    site.clock.advance(10)
    second = await site.issue(node, renews=first.serial)
    assert await told() == Renewal(first.serial, second.serial, second.not_after)
    await attest_again(site.authority, node, attested(site.clock, "a"))
    assert await told() == Renewal(first.serial, second.serial, second.not_after)  # it stands until the next
    await site.issue(node)  # enrolled anew
    assert await told() is None


async def test_without_a_tpm_no_renewal_is_told(site: Site) -> None:
    node = await site.expect("soft")
    nothing = Attested(AttestationClass.NONE, site.clock.now() + 300)
    first = await site.issue(node, attested=nothing)
    await site.issue(node, attested=nothing, renews=first.serial)
    changes = [each for each in await catch_up(site) if isinstance(each, PostureChanged)]
    assert [each.renewal for each in changes] == [None]

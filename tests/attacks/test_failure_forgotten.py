"""attacks.md, "failure forgotten" (keylime's class): an attestation fails, the node falls silent, then shows a good
quote. It stays failed until an operator clears it, on every way back to trust, and across a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identity import PostureChanged, Verdict
from foundation.reasons import Reason
from foundation.wire.enrolment import Token
from foundation.wire.reattestation import Push
from pki.feed import Feed
from pki.inventory import Description
from tests.support.attesting import AttestingNode, attesting_node
from tests.support.installation import installation
from tests.support.site import ACTOR


@pytest.fixture(name="node")
async def _node(tmp_path: Path) -> AsyncIterator[AttestingNode]:
    """A node whose quotes are good from first to last."""
    async with installation(tmp_path / "site") as site:
        node = await attesting_node(site)
        await node.ask()
        await node.push()
        yield node


async def _told(feed: Feed) -> Verdict:
    """The verdict on the node that a gateway learns when it begins anew."""
    async with feed.follow(None) as changes:
        async for change in changes:
            if isinstance(change, PostureChanged):
                return change.posture.verdict
    raise AssertionError


async def _still_failed(node: AttestingNode) -> None:
    """By none of what a node can do: ask for a nonce, push a good quote, enrol, renew."""
    node.tick()
    newest = (await node.site.authority.inventory.get(node.caller.id)).current_serial
    for way in (node.ask(), node.push(), node.renew(), node.renew(renews=newest)):
        with pytest.raises(Fault) as caught:
            await way
        assert caught.value.reason is Reason.ATTESTATION_LATCHED
    entry = await node.site.authority.inventory.get(node.caller.id)
    assert (entry.posture.verdict, entry.attested_until) == (Verdict.FAILED, 0.0)
    assert await _told(node.site.authority.feed) is Verdict.FAILED


async def test_a_good_quote_does_not_undo_a_failure(node: AttestingNode) -> None:
    identity, inventory = node.caller.id, node.site.authority.inventory
    await inventory.latch_failure(identity, Reason.REFERENCE_MISMATCH, ACTOR)
    node.tick(30 * 86400)
    await _still_failed(node)
    await inventory.describe(identity, Description(site="elsewhere"), ACTOR)
    await inventory.quarantine(identity, ACTOR)
    await inventory.release(identity, ACTOR)
    await _still_failed(node)


async def test_it_survives_a_restart(node: AttestingNode) -> None:
    await node.site.authority.inventory.latch_failure(node.caller.id, Reason.QUOTE_DIGEST, ACTOR)
    async with installation(node.site.folder) as again:
        node.site = again
        await _still_failed(node)
        await again.authority.inventory.clear_failure(node.caller.id, ACTOR)
        await node.renew()
        await node.ask()
        await node.push()
        assert await _told(again.authority.feed) is Verdict.PASSED


async def test_a_token_does_not_undo_it(node: AttestingNode) -> None:
    authority, identity = node.site.authority, node.caller.id
    token: Token = await authority.tokens.mint(identity, 600, ACTOR)
    use = await authority.tokens.check(token)
    use = await authority.tokens.bind(use, (await authority.inventory.get(identity)).ek_sha256)
    await authority.inventory.latch_failure(identity, Reason.QUOTE_DIGEST, ACTOR)
    with pytest.raises(Fault) as caught:
        await node.renew(token=use)
    assert caught.value.reason is Reason.ATTESTATION_LATCHED
    with pytest.raises(Fault):
        await authority.tokens.mint(identity, 600, ACTOR)


async def test_revoking_and_admitting_does_not_undo_it(node: AttestingNode) -> None:
    authority, identity = node.site.authority, node.caller.id
    await authority.inventory.latch_failure(identity, Reason.CLONE_SUSPECTED, ACTOR)
    await authority.revocations.retire(identity, ACTOR)
    with pytest.raises(Fault):
        await node.send(Push())
    await authority.revocations.admit(identity, ACTOR)
    with pytest.raises(Fault) as caught:
        await node.renew()
    assert caught.value.reason is Reason.ATTESTATION_LATCHED
    entry = await authority.inventory.get(identity)
    assert (entry.posture.verdict, entry.attested_until) == (Verdict.FAILED, 0.0)
    assert await _told(authority.feed) is Verdict.FAILED

"""attacks.md, "failure forgotten" (keylime's class): an attestation fails, the node falls silent, then shows a good
quote. It stays failed until an operator clears it, on every way to a certificate, and across a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identity import PostureChanged, Verdict
from foundation.reasons import Reason
from foundation.wire.enrolment import Token
from pki.feed import Feed
from pki.inventory import Description
from tests.support.site import ACTOR, Site, attested, open_site


async def _refused(site: Site, name: str, **more: object) -> Reason:
    with pytest.raises(Fault) as caught:
        await site.issue(site.node(name), **more)
    return caught.value.reason


async def _told(feed: Feed) -> Verdict:
    """The verdict that a gateway learns when it begins anew."""
    async with feed.follow(None) as changes:
        async for change in changes:
            if isinstance(change, PostureChanged):
                return change.posture.verdict
    raise AssertionError


async def _still_failed(site: Site, name: str) -> None:
    node = site.node(name)
    assert await _refused(site, name) is Reason.ATTESTATION_LATCHED
    with pytest.raises(Fault) as caught:
        await site.authority.inventory.record_attestation(node, attested(site.clock, name), ACTOR)
    assert caught.value.reason is Reason.ATTESTATION_LATCHED
    entry = await site.authority.inventory.get(node)
    assert (entry.posture.verdict, entry.attested_until) == (Verdict.FAILED, 0.0)
    assert await _told(site.authority.feed) is Verdict.FAILED


async def test_a_good_quote_does_not_undo_a_failure(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.issue(node)
        await site.authority.inventory.latch_failure(node, Reason.REFERENCE_MISMATCH, ACTOR)
        site.clock.advance(30 * 86400)
        await _still_failed(site, node.name)
        await site.authority.inventory.describe(node, Description(site="elsewhere"), ACTOR)
        await site.authority.inventory.quarantine(node, ACTOR)
        await site.authority.inventory.release(node, ACTOR)
        await _still_failed(site, node.name)


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.issue(node)
        await site.authority.inventory.latch_failure(node, Reason.QUOTE_DIGEST, ACTOR)
    async with open_site(tmp_path) as site:
        await _still_failed(site, node.name)
        await site.authority.inventory.clear_failure(node, ACTOR)
        await site.issue(node)
        assert await _told(site.authority.feed) is Verdict.PASSED


async def test_a_token_does_not_undo_it(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        token: Token = await site.authority.tokens.mint(node, 600, ACTOR)
        use = await site.authority.tokens.check(token)
        use = await site.authority.tokens.bind(use, attested(site.clock, node.name).ek_sha256)
        await site.authority.inventory.latch_failure(node, Reason.QUOTE_DIGEST, ACTOR)
        assert await _refused(site, node.name, token=use) is Reason.ATTESTATION_LATCHED
        with pytest.raises(Fault):
            await site.authority.tokens.mint(node, 600, ACTOR)


async def test_revoking_and_admitting_does_not_undo_it(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.issue(node)
        await site.authority.inventory.latch_failure(node, Reason.CLONE_SUSPECTED, ACTOR)
        await site.authority.revocations.retire(node, ACTOR)
        await site.authority.revocations.admit(node, ACTOR)
        await _still_failed(site, node.name)

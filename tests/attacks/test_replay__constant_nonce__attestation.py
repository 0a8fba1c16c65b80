"""Row "replay, constant nonce" (CVE-2026-6420), in continuous re-attestation: a quote kept from before, a quote made
for another protocol, nonces that are equal or guessable, a quote that says no nonce at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import NONCE_BYTES
from foundation.wire.enrolment import qualifying_data as enrolment_data
from foundation.wire.reattestation import Push
from tests.support.attesting import AttestingNode, attesting_node
from tests.support.installation import Installation, installation

HOLDS = 300


@pytest.fixture(name="site")
async def _site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as site:
        yield site


async def refused(node: AttestingNode, message: Push) -> Reason:
    """Why it is; and then nothing has moved, and nothing stays on record."""
    before = await node.site.authority.rounds.read(node.caller.id)
    with pytest.raises(Fault) as caught:
        await node.send(message)
    assert await node.site.authority.rounds.read(node.caller.id) == before
    assert not before[0].latched
    return caught.value.reason


async def test_a_quote_of_a_round_before_proves_nothing_of_now(site: Installation) -> None:
    """The node was well once. Its answers are kept, and played while it is silent."""
    node = await attesting_node(site)
    await node.ask()
    played = []
    for _ in range(3):
        played.append(node.message())
        await node.push()
        node.tick()
    entry = await site.authority.inventory.get(node.caller.id)
    for message in played[:-1]:
        assert await refused(node, message) is Reason.ATTEST_NONCE
    # The last one is answered as it was, and moves nothing.
    assert int(entry.attested_until) == (await node.send(played[-1])).attested_until
    assert (await site.authority.inventory.get(node.caller.id)).attested_until == entry.attested_until


async def test_a_quote_that_is_held_back_proves_the_past_alone(site: Installation) -> None:
    """Made while the node was well, sent when it no longer is: it counts from its nonce's issue."""
    node = await attesting_node(site)
    began = site.clock.now()
    await node.ask()
    kept = node.message()
    site.clock.advance(HOLDS - 1)
    assert (await node.send(kept)).attested_until == int(began + HOLDS)


async def test_asking_does_not_move_the_deadline(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    await node.push()
    entry = await site.authority.inventory.get(node.caller.id)
    node.tick(200)
    for _ in range(3):
        assert (await node.ask()).attested_until == 0
    assert (await site.authority.inventory.get(node.caller.id)).attested_until == entry.attested_until


@pytest.mark.parametrize("extra", ["none", "zero", "nonce itself", "enrolment", "guessed"])
async def test_a_quote_over_anything_but_the_nonce_is_refused(site: Installation, extra: str) -> None:
    node = await attesting_node(site)
    asked = await node.ask()
    over = {
        "none": b"",
        "zero": node.qualifying(bytes(NONCE_BYTES)),
        "nonce itself": asked.nonce,
        "enrolment": enrolment_data("quote", "renew", b"s" * 16, asked.nonce, b"{}", b"k" * 32),
        "guessed": node.qualifying(b""),
    }[extra]
    assert await refused(node, node.message(quote=node.quote(over, asked.pcrs))) is Reason.ATTEST_NONCE


async def test_a_quote_of_a_node_without_rounds_is_refused(site: Installation) -> None:
    """There is no nonce that it could be over, not even an empty one."""
    node, other = await attesting_node(site), await attesting_node(site, "edge-2")
    node.next = await other.ask()
    for over in (b"", node.qualifying(b""), node.qualifying(node.next.nonce)):
        assert await refused(node, node.message(quote=node.quote(over, node.next.pcrs))) is Reason.ATTEST_NONCE


async def test_no_two_nonces_are_equal(site: Installation) -> None:
    node, other = await attesting_node(site), await attesting_node(site, "edge-2")
    nonces = [(await one.ask()).nonce for one in (node, other) for _ in range(4)]
    for one in (node, other):
        nonces += [(await one.push()).nonce for _ in range(4)]
    assert len(set(nonces)) == len(nonces)
    assert {len(nonce) for nonce in nonces} == {NONCE_BYTES}

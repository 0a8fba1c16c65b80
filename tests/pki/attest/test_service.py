"""Rounds of re-attestation over a real database: what moves, what stays, and what a lost message costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.demo.measured_boot import healthy_boot
from foundation.faults import Fault
from foundation.identity import PostureChanged, Verdict
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from foundation.wire.reattestation import Push
from pki.enrol.judgement import Trust
from pki.enrol.settings import RateSettings, RoundSettings
from pki.tpm.reference import PcrReference, ReferenceValues
from tests.support.attesting import MAKER, AttestingNode, attesting_node, ima_entry
from tests.support.installation import Installation, installation
from tests.support.soft_tpm import PCRS, SoftTpm

HOLDS, INTERVAL = 300, 60


@pytest.fixture(name="site")
async def _site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as site:
        yield site


async def refusal(node: AttestingNode, message: Push) -> Reason:
    with pytest.raises(Fault) as caught:
        await node.send(message)
    return caught.value.reason


async def is_latched(node: AttestingNode) -> bool:
    return bool((await node.site.authority.inventory.get(node.caller.id)).latched)


async def test_a_round_moves_the_deadline_and_no_fact(site: Installation) -> None:
    node = await attesting_node(site)
    before = await site.authority.inventory.get(node.caller.id)
    numbers, told = await site.authority.feed.numbers(), site.audit.kinds()
    issued_at = site.clock.now()
    asked = await node.ask()
    assert (asked.attested_until, asked.interval, asked.pcrs) == (0, INTERVAL, PCRS)
    node.tick()
    answer = await node.push()
    after = await site.authority.inventory.get(node.caller.id)
    assert answer.attested_until == int(issued_at + HOLDS)
    assert after.attested_until == pytest.approx(issued_at + HOLDS)
    assert answer.nonce != asked.nonce
    assert (after.record, after.posture, after.posture_number) == (before.record, before.posture, before.posture_number)
    assert await site.authority.feed.numbers() == numbers
    assert site.audit.kinds() == told
    assert after.counters is not None
    assert after.counters.clock == node.tpm.clock[0]


async def test_a_gateway_hears_of_the_moved_deadline_alone(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    numbers = await site.authority.feed.numbers()
    async with site.authority.feed.follow(numbers) as changes:
        changes_ = aiter(changes)
        while not hasattr(await anext(changes_), "numbers"):
            pass  # up to the first heartbeat
        answer = await node.push()
        moved = await anext(changes_)
    assert isinstance(moved, PostureChanged)
    assert (moved.id, int(moved.attested_until), moved.number) == (node.caller.id, answer.attested_until, numbers[2])


async def test_rounds_go_on_with_one_message_each(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    nonces = []
    for _ in range(5):
        node.tick()
        nonces.append((await node.push()).nonce)
    assert len(set(nonces)) == 5


async def test_a_delayed_quote_proves_only_the_past(site: Installation) -> None:
    node = await attesting_node(site)
    issued_at = site.clock.now()
    await node.ask()
    message = node.message()
    site.clock.advance(HOLDS + 100)
    answer = await node.send(message)
    assert answer.attested_until == int(issued_at + HOLDS) < site.clock.now()


async def test_a_lost_reply_costs_nothing(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    message = node.message()
    lost = await node.send(message)
    node.tick(10)
    assert await node.send(message) == lost
    # Nor does a new quote over the nonce before: it moves nothing either.
    assert await node.send(node.message()) == lost
    entry = await site.authority.inventory.get(node.caller.id)
    assert int(entry.attested_until) == lost.attested_until
    node.next = lost
    await node.push()


async def test_the_same_message_many_times_at_once_gets_one_answer(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    message = node.message()
    answers = await asyncio.gather(*(node.send(message) for _ in range(8)))
    assert len(set(answers)) == 1


async def test_the_nonce_before_is_good_until_the_next_is_used(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    first = node.message()
    await node.push()
    assert (await node.send(first)).nonce == node.next.nonce  # type: ignore[union-attr]
    node.tick()
    await node.push()
    assert await refusal(node, first) is Reason.ATTEST_NONCE
    assert not await is_latched(node)


async def test_a_late_message_that_was_overtaken_fails_nobody(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    slow = node.message()
    node.tick(5)
    await node.send(node.message())
    assert await refusal(node, slow) is Reason.CLOCK_REGRESSED
    assert not await is_latched(node)


async def test_a_round_survives_a_restart_and_serves_at_another_authority(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    site.service = site.another_process()
    node.tick()
    await node.push()
    site.service = site.another_process()
    node.tick()
    await node.push()


async def test_asking_again_replaces_the_nonce_that_was_not_used(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    stale = node.message()
    await node.ask()
    assert await refusal(node, stale) is Reason.ATTEST_NONCE
    assert not await is_latched(node)
    await node.push()


async def test_a_renewed_certificate_needs_a_nonce_of_its_own(site: Installation) -> None:
    node = await attesting_node(site)
    await node.ask()
    old, message = node.caller, node.message()
    node.tick(1)
    await node.renew()
    assert await refusal(node, message) is Reason.ATTEST_NONCE
    with pytest.raises(Fault) as caught:
        await node.send(message, old)
    assert caught.value.reason is Reason.CERTIFICATE_SUPERSEDED
    assert not await is_latched(node)
    await node.push()  # the nonce is the node's still; what the quote says of the certificate is new


async def test_another_boot_fails_the_node_until_an_operator_clears_it(tmp_path: Path) -> None:
    well = SoftTpm(MAKER)
    reference = ReferenceValues("sha256", {0: PcrReference(values=frozenset({well.values(PCRS)[0]}))})
    async with installation(tmp_path / "site", trust=Trust(references={"default": reference})) as site:
        node = await attesting_node(site)
        await node.ask()
        await node.push()
        node.tick()
        healthy = node.tpm.events
        node.tpm.events = healthy_boot(firmware="another")
        node.whole = True
        assert await refusal(node, node.message()) is Reason.REFERENCE_MISMATCH
        entry = await site.authority.inventory.get(node.caller.id)
        assert (entry.posture.verdict, entry.attested_until) == (Verdict.FAILED, 0.0)
        node.tpm.events = healthy
        node.tick()
        assert await refusal(node, node.message()) is Reason.ATTESTATION_LATCHED
        assert await refusal(node, Push()) is Reason.ATTESTATION_LATCHED
        await site.authority.inventory.clear_failure(node.caller.id, "ada")
        before = await site.authority.feed.numbers()
        await node.push()
        after = await site.authority.inventory.get(node.caller.id)
        assert after.posture.verdict is Verdict.PASSED
        assert (await site.authority.feed.numbers()).postures == before.postures + 1


async def test_what_only_the_log_explains_is_asked_for(tmp_path: Path) -> None:
    well = SoftTpm(MAKER)
    digests = frozenset(each.digest("sha256") for each in well.events if each.pcr == 0)
    reference = ReferenceValues("sha256", {0: PcrReference(events=digests)})
    async with installation(tmp_path / "site", trust=Trust(references={"default": reference})) as site:
        node = await attesting_node(site)
        await node.ask()
        assert await refusal(node, node.message(event_log=b"")) is Reason.EVIDENCE_INCOMPLETE
        assert not await is_latched(node)
        await node.push()
        node.tick()
        assert node.message().event_log == b""
        await node.push()
        # Other reference values: what was accepted by those before is judged anew.
        site.trust = Trust(
            references={"default": ReferenceValues("sha256", {0: PcrReference(events=digests, required=digests)})}
        )
        site.service = site.another_process()
        node.tick()
        assert await refusal(node, node.message()) is Reason.EVIDENCE_INCOMPLETE
        node.whole = True
        await node.push()


async def test_silence_is_not_forgiven_by_a_renewal(site: Installation) -> None:
    """Who has begun its rounds gets no more by a renewal than by a round."""
    second = site.service.renewal._second
    node = await attesting_node(site)
    assert await second.attested_until(node.caller.id) == site.clock.now() + 3600
    await node.ask()
    assert await second.attested_until(node.caller.id) == site.clock.now() + 3600
    await node.push()
    assert await second.attested_until(node.caller.id) == site.clock.now() + HOLDS


async def test_many_nodes_at_once_share_commits(site: Installation) -> None:
    nodes = [await attesting_node(site, f"edge-{number}") for number in range(20)]
    await asyncio.gather(*(node.ask() for node in nodes))
    commits = 0
    writing = site.authority._books.writing

    def counted() -> object:
        nonlocal commits
        commits += 1
        return writing()

    site.authority._books.writing = counted  # type: ignore[method-assign,assignment]
    answers = await asyncio.gather(*(node.push() for node in nodes))
    assert len({answer.nonce for answer in answers}) == 20
    assert commits <= 3


async def test_an_audit_log_that_cannot_be_written_stops_no_deadline(site: Installation) -> None:
    """Nothing that a round does is a change of trust: there is nothing to put on record."""
    node = await attesting_node(site)
    await node.ask()
    site.audit.broken = True
    await node.push()


async def test_who_gives_up_waiting_stops_nobody(site: Installation) -> None:
    node, other = await attesting_node(site), await attesting_node(site, "edge-2")
    await node.ask()
    await other.ask()
    sending = asyncio.create_task(node.send(node.message()))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await other.push()
    await node.ask()
    await node.push()


@pytest.mark.parametrize("pace", [1, 20])
async def test_messages_of_one_node_are_bounded(tmp_path: Path, pace: int) -> None:
    async with installation(tmp_path / "site", rate=RateSettings(pace, 60)) as site:
        node = await attesting_node(site)
        for _ in range(pace):
            await node.ask()
        assert await refusal(node, Push()) is Reason.ENROLMENT_RATE_LIMITED


async def test_a_node_that_stays_failed_fills_no_log(site: Installation) -> None:
    """It pushes on; its failure is on record since it failed."""
    node = await attesting_node(site)
    await node.ask()
    await site.authority.inventory.latch_failure(node.caller.id, Reason.CLONE_SUSPECTED, "test")
    told = len(site.audit.events)
    for _ in range(3):
        assert await refusal(node, node.message()) is Reason.ATTESTATION_LATCHED
    assert len(site.audit.events) == told


async def test_a_refusal_that_is_news_is_on_record(site: Installation) -> None:
    node, other = await attesting_node(site), await attesting_node(site, "edge-2")
    await node.ask()
    await other.ask()
    assert await refusal(node, other.message()) is Reason.ATTEST_SIGNATURE
    assert (site.audit.events[-1].kind, site.audit.events[-1].reason) == ("attest.refused", "attest_signature")


async def test_as_many_messages_are_taken_as_the_interval_asks_for(tmp_path: Path) -> None:
    rules = RoundSettings(interval=1.0, holds=5.0)
    async with installation(tmp_path / "site", rate=RateSettings(1, 1), attestation=rules) as site:
        node = await attesting_node(site)
        await node.ask()
        for _ in range(20):
            node.tick(1)
            await node.push()


async def test_every_quoted_pcr_is_judged_when_it_moves(tmp_path: Path) -> None:
    """PCR 10 too, where settings quote it and no runtime log explains it."""
    pcrs = PcrSelection("sha256", (0, 10))
    reference = ReferenceValues("sha256", {10: PcrReference(values=frozenset({bytes(32)}))})
    async with installation(tmp_path / "site", trust=Trust(references={"default": reference}), pcrs=pcrs) as site:
        node = await attesting_node(site)
        await node.ask()
        await node.push()
        node.tick()
        node.log = [ima_entry(b"/tmp/x", bytes(32))]
        node.whole = True
        assert await refusal(node, node.message()) is Reason.REFERENCE_MISMATCH

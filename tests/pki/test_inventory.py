"""Entries: expected, bound, described, attested, failed, shut out and let in; each change with its number."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind
from foundation.identity import AttestationClass, State, Verdict
from foundation.reasons import Reason
from pki.entries import Attested, Counters, Expected, check_counters
from pki.inventory import Description, Filter
from tests.support.site import ACTOR, TRUST_DOMAIN, Site, attest_again, attested

pytestmark = pytest.mark.every_storage
EK = b"e" * 32


def parse(value: dict[str, object]) -> Expected:
    return Expected.parse(Fields(value, "entry", Reason.MESSAGE_MALFORMED), TRUST_DOMAIN)


async def test_an_expected_node_is_found_by_name_and_tpm(site: Site) -> None:
    added = await site.authority.inventory.add(
        Expected(site.node(), ("edge",), 2, "eu", "s1", "seg", {"a": "b"}, EK), ACTOR
    )
    assert added == await site.authority.inventory.get(site.node())
    assert added == await site.authority.inventory.find_by_ek(EK)
    assert (added.record.state, added.record.epoch, added.attested_until) == (State.EXPECTED, 1, 0.0)
    assert await site.authority.inventory.find_by_ek(b"x" * 32) is None


async def test_names_and_tpms_are_taken_once(site: Site) -> None:
    await site.authority.inventory.add(Expected(site.node("a"), ek_sha256=EK), ACTOR)
    for again, reason in (
        (Expected(site.node("a")), Reason.CONFLICT),
        (Expected(site.node("b"), ek_sha256=EK), Reason.EK_TAKEN),
    ):
        with pytest.raises(Fault) as caught:
            await site.authority.inventory.add(again, ACTOR)
        assert caught.value.reason is reason


async def test_an_import_is_all_or_nothing_and_names_the_line(site: Site) -> None:
    batch = (Expected(site.node("a")), Expected(site.node("b")), Expected(site.node("a")))
    before, events = await site.authority.feed.numbers(), list(site.audit.events)
    with pytest.raises(Fault) as caught:
        await site.authority.inventory.add_all(batch, ACTOR)
    assert caught.value.field == "line 3"
    assert await site.authority.inventory.page(Filter(kind=Kind.NODE)) == ()
    assert (await site.authority.feed.numbers(), site.audit.events) == (before, events)


async def test_pages_follow_each_other_and_filters_narrow(site: Site) -> None:
    for name in ("c", "a", "d", "b"):
        await site.authority.inventory.add(Expected(site.node(name), tier=1 if name < "c" else 2, site=name), ACTOR)
    nodes = Filter(kind=Kind.NODE)
    first = await site.authority.inventory.page(nodes, limit=3)
    rest = await site.authority.inventory.page(nodes, after=str(first[-1].id), limit=3)
    assert [entry.id.name for entry in first + rest] == ["a", "b", "c", "d"]
    assert [e.id.name for e in await site.authority.inventory.page(Filter(tier=1, site="b"))] == ["b"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "entry.name"),
        ({"name": "UPPER"}, "entry.name"),
        ({"name": "a", "kind": "king"}, "entry.kind"),
        ({"name": "a", "tier": 4}, "entry.tier"),
        ({"name": "a", "site": "a b"}, "entry.site"),
        ({"name": "a", "roles": ["x y"]}, "entry.roles"),
        ({"name": "a", "labels": {"k": "v" * 257}}, "entry.labels"),
        ({"name": "a", "ek_sha256": "zz"}, "entry.ek_sha256"),
        ({"name": "a", "ek_sha256": "AB" * 32}, "entry.ek_sha256"),
        ({"name": "a", "ek_sha256": "ab" * 31}, "entry.ek_sha256"),
        ({"name": "a", "more": 1}, "entry"),
    ],
)
def test_what_an_import_refuses(value: dict[str, object], field: str) -> None:
    with pytest.raises(Fault) as caught:
        parse(value)
    assert caught.value.field == field


def test_what_an_import_may_say() -> None:
    value = {"name": "a", "kind": "service", "roles": ["b", "a", "b"], "ek_sha256": "ab" * 32}
    expected = parse(value)
    assert (expected.id.kind, expected.roles, expected.ek_sha256) == (Kind.SERVICE, ("a", "b"), b"\xab" * 32)


async def test_a_tpm_is_bound_once_and_for_all(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    own, stranger = (attested(site.clock, name) for name in ("a", "x"))
    await site.issue(node, attested=own)
    assert (await site.authority.inventory.get(node)).ek_sha256 == own.ek_sha256
    await site.issue(node, attested=own)
    for who, shown, reason in ((node, stranger, Reason.EK_CHANGED), (other, own, Reason.EK_TAKEN)):
        with pytest.raises(Fault) as caught:
            await site.issue(who, attested=shown)
        assert caught.value.reason is reason


async def test_describing_raises_epoch_and_number(site: Site) -> None:
    node = await site.expect()
    before, numbers = await site.authority.inventory.get(node), await site.authority.feed.numbers()
    after = await site.authority.inventory.describe(
        node, Description(roles=("z", "a"), labels={"k": "v"}, site=""), ACTOR
    )
    assert (after.record.roles, after.record.labels) == (("a", "z"), {"k": "v"})
    assert after.record.epoch == before.record.epoch + 1
    assert after.inventory_number == numbers.inventory + 1
    unchanged = await site.authority.inventory.describe(node, Description(), ACTOR)
    assert unchanged == after


async def test_a_repeated_attestation_moves_the_deadline_and_no_fact(site: Site) -> None:
    node = await site.expect()
    first = await attest_again(site.authority, node, attested(site.clock, node.name))
    site.clock.advance(60)
    events = len(site.audit.events)
    second = await attest_again(site.authority, node, attested(site.clock, node.name))
    assert second.attested_until == first.attested_until + 60
    assert (second.record, second.posture, second.posture_number) == (first.record, first.posture, first.posture_number)
    assert len(site.audit.events) == events


async def test_another_class_is_a_change_of_facts(site: Site) -> None:
    node = await site.expect()
    passed = attested(site.clock, node.name)
    first = await attest_again(site.authority, node, passed)
    hardware = Attested(AttestationClass.HARDWARE, passed.until, passed.ek_sha256, counters=passed.counters)
    second = await attest_again(site.authority, node, hardware)
    assert second.posture_number == first.posture_number + 1
    assert second.record.epoch == first.record.epoch + 1


async def test_a_failure_ends_trust_at_once(site: Site) -> None:
    node = await site.expect()
    await site.issue(node)
    failed = await site.authority.inventory.latch_failure(node, Reason.REFERENCE_MISMATCH, ACTOR)
    assert (failed.posture.verdict, failed.latched, failed.attested_until) == (
        Verdict.FAILED,
        "reference_mismatch",
        0.0,
    )
    again = await site.authority.inventory.latch_failure(node, Reason.QUOTE_DIGEST, ACTOR)
    assert again == failed


async def test_clearing_needs_a_failure_and_proves_nothing_itself(site: Site) -> None:
    node = await site.expect()
    await site.issue(node)
    with pytest.raises(Fault) as caught:
        await site.authority.inventory.clear_failure(node, ACTOR)
    assert caught.value.reason is Reason.CONFLICT
    await site.authority.inventory.latch_failure(node, Reason.CLOCK_REGRESSED, ACTOR)
    cleared = await site.authority.inventory.clear_failure(node, ACTOR)
    assert (cleared.latched, cleared.posture.verdict, cleared.counters) == ("", Verdict.FAILED, None)
    await site.issue(node, attested=attested(site.clock, node.name, counters=Counters(0, 0, 1)))
    assert (await site.authority.inventory.get(node)).posture.verdict is Verdict.PASSED


async def test_quarantine_and_back(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    await site.issue(node)
    for one, back in ((node, State.ACTIVE), (other, State.EXPECTED)):
        shut = await site.authority.inventory.quarantine(one, ACTOR, "smells")
        assert shut.record.state is State.QUARANTINED
        assert (await site.authority.inventory.release(one, ACTOR)).record.state is back
        with pytest.raises(Fault) as caught:
            await site.authority.inventory.release(one, ACTOR)
        assert caught.value.reason is Reason.INVENTORY_STATE


async def test_nothing_changes_unrecorded(site: Site) -> None:
    node = await site.expect()
    before = await site.authority.inventory.get(node)
    site.audit.broken = True
    inventory = site.authority.inventory
    for act in (
        inventory.quarantine(node, ACTOR),
        inventory.latch_failure(node, Reason.QUOTE_DIGEST, ACTOR),
        inventory.describe(node, Description(tier=1), ACTOR),
        site.issue(node),
        attest_again(site.authority, node, attested(site.clock, node.name)),
        inventory.add(Expected(site.node("new")), ACTOR),
    ):
        with pytest.raises(Fault) as caught:
            await act
        assert caught.value.reason is Reason.AUDIT_FAILED
    assert await site.authority.inventory.get(node) == before


async def test_concurrent_changes_all_count(site: Site) -> None:
    node = await site.expect()
    before = await site.authority.feed.numbers()
    inventory = site.authority.inventory
    await asyncio.gather(*(inventory.describe(node, Description(site=f"s{i}"), ACTOR) for i in range(20)))
    assert (await inventory.get(node)).record.epoch == 21
    assert (await site.authority.feed.numbers()).inventory == before.inventory + 20


_counters = st.builds(Counters, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@given(_counters, _counters)
def test_counters_compare_as_one_tuple(known: Counters, shown: Counters) -> None:
    if tuple(shown) >= tuple(known):
        check_counters(known, shown)
        return
    with pytest.raises(Fault) as caught:
        check_counters(known, shown)
    assert caught.value.reason is Reason.CLOCK_REGRESSED


def test_a_counter_beyond_belief_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        check_counters(None, Counters(1, 0, 2**63))
    assert caught.value.reason is Reason.CLOCK_REGRESSED

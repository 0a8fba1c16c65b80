"""The pipeline from a request to a recorded certificate, and every way that it may end early."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, State, Verdict
from foundation.reasons import Reason
from pki.entries import Attested, Counters, Expected
from pki.issue import Answer, IssueRequest, random_serial
from pki.ledger import Step
from pki.profile import ProfileName
from pki.revocation_reason import RevocationReason
from pki.signer import FileSigner
from tests.support.site import ACTOR, TRUST_DOMAIN, Site, attested, new_spki

pytestmark = pytest.mark.every_storage
KEY = hashlib.sha256(b"second message").digest()


async def refused(site: Site, identity: SpiffeId, **more: object) -> Reason:
    with pytest.raises(Fault) as caught:
        await site.issue(identity, **more)
    return caught.value.reason


async def test_a_certificate_is_on_record_with_everything_that_came_of_it(site: Site) -> None:
    node = await site.expect()
    issued = await site.issue(node, answer=Answer(KEY, lambda made: made.serial.encode()))
    leaf = x509.load_der_x509_certificate(issued.chain[0])
    assert format(leaf.serial_number, "x") == issued.serial
    assert leaf.issuer == x509.load_der_x509_certificate(issued.chain[1]).subject
    assert hashlib.sha256(issued.chain[2]).digest() == site.authority.root_sha256

    row = await site.authority.ledger.certificate(issued.serial)
    assert (row.step, row.certificate, row.tbs) == (Step.ISSUED, issued.chain[0], leaf.tbs_certificate_bytes)
    entry = await site.authority.inventory.get(node)
    assert (entry.record.state, entry.current_serial) == (State.ACTIVE, issued.serial)
    assert (entry.posture.attestation, entry.posture.verdict) == (AttestationClass.VIRTUAL, Verdict.PASSED)
    assert entry.attested_until == issued.attested_until
    assert await site.authority.ledger.recall(KEY) == issued.serial.encode()
    assert site.audit.kinds()[-3:] == ["identity.expected", "certificate.issued", "posture.changed"]


async def test_an_answer_lives_as_long_as_its_certificate(site: Site) -> None:
    node = await site.expect()
    issued = await site.issue(node, answer=Answer(KEY, lambda made: b"body"))
    site.clock.advance(issued.not_after - site.clock.now())
    assert await site.authority.ledger.recall(KEY) is None


async def test_renewing_raises_the_epoch_and_moves_the_deadline_alone(site: Site) -> None:
    node = await site.expect()
    await site.issue(node)
    first, numbers = await site.authority.inventory.get(node), await site.authority.feed.numbers()
    site.clock.advance(60)
    await site.issue(node)
    second = await site.authority.inventory.get(node)
    assert second.record.epoch == first.record.epoch + 1
    assert second.attested_until == first.attested_until + 60
    assert (await site.authority.feed.numbers()).postures == numbers.postures


async def test_no_audit_no_certificate(site: Site) -> None:
    node = await site.expect()
    site.audit.broken = True
    assert await refused(site, node) is Reason.AUDIT_FAILED
    assert await site.authority.ledger.page(node) == ()


async def test_a_signer_that_fails_leaves_an_abandoned_row(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await site.expect()

    async def broken(self: FileSigner, message: bytes) -> bytes:
        raise Fault(Reason.SIGNER_FAILED)

    monkeypatch.setattr(FileSigner, "sign", broken)
    assert await refused(site, node) is Reason.SIGNER_FAILED
    (row,) = await site.authority.ledger.page(node)
    assert (row.step, row.certificate) == (Step.ABANDONED, b"")
    assert site.audit.kinds()[-2:] == ["certificate.issued", "certificate.abandoned"]
    assert (await site.authority.inventory.get(node)).record.state is State.EXPECTED


async def test_a_revocation_while_the_key_signs_is_seen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await site.expect()
    sign = FileSigner.sign

    async def slow(self: FileSigner, message: bytes) -> bytes:
        monkeypatch.undo()
        await site.authority.revocations.revoke_identity(node, RevocationReason.KEY_COMPROMISE, ACTOR)
        return await sign(self, message)

    monkeypatch.setattr(FileSigner, "sign", slow)
    assert await refused(site, node) is Reason.INVENTORY_STATE
    (row,) = await site.authority.ledger.page(node)
    assert row.step is Step.ABANDONED
    assert await site.authority.revocations.is_revoked(node, row.serial)


async def test_who_may_not_have_one(site: Site) -> None:
    assert await refused(site, site.node("stranger")) is Reason.INVENTORY_UNKNOWN
    node = await site.expect()
    await site.issue(node)
    await site.authority.inventory.quarantine(node, ACTOR)
    assert await refused(site, node) is Reason.INVENTORY_STATE
    await site.authority.inventory.release(node, ACTOR)
    await site.authority.inventory.latch_failure(node, Reason.QUOTE_DIGEST, ACTOR)
    assert await refused(site, node) is Reason.ATTESTATION_LATCHED


async def test_one_tpm_is_one_node(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    await site.issue(node)
    assert await refused(site, other, attested=attested(site.clock, "a")) is Reason.EK_TAKEN
    assert await refused(site, node, attested=attested(site.clock, "b")) is Reason.EK_CHANGED
    without = Attested(AttestationClass.NONE, site.clock.now() + 60)
    assert await refused(site, node, attested=without) is Reason.EK_CHANGED


@pytest.mark.parametrize("shown", [Counters(1, 0, 999), Counters(0, 9, 9999), None])
async def test_counters_never_go_back(site: Site, shown: Counters | None) -> None:
    node = await site.expect()
    await site.issue(node)
    back = attested(site.clock, node.name)
    stale = Attested(back.attestation, back.until, back.ek_sha256, back.ak_public, back.ak_name, shown)
    assert await refused(site, node, attested=stale) is Reason.CLOCK_REGRESSED


async def test_a_reset_lets_the_clock_begin_anew(site: Site) -> None:
    node = await site.expect()
    await site.issue(node)
    await site.issue(node, attested=attested(site.clock, node.name, counters=Counters(2, 0, 5)))


async def test_renewal_names_the_newest(site: Site) -> None:
    node = await site.expect()
    first = await site.issue(node)
    second = await site.issue(node, renews=first.serial)
    assert await refused(site, node, renews=first.serial) is Reason.CLONE_SUSPECTED
    await site.issue(node, renews=second.serial)


async def test_a_listeners_certificate_does_not_make_its_identity_a_caller(site: Site) -> None:
    gateway = SpiffeId(TRUST_DOMAIN, Kind.GATEWAY, "gw-1")
    await site.authority.inventory.add(Expected(gateway), ACTOR)
    request = IssueRequest(gateway, ProfileName.SERVER, new_spki(), ACTOR, names=("gw-1.example",))
    await site.authority.issue(request)
    entry = await site.authority.inventory.get(gateway)
    assert (entry.record.state, entry.current_serial) == (State.EXPECTED, "")


def test_serials_are_long_positive_and_differ() -> None:
    serials = {random_serial() for _ in range(1000)}
    assert len(serials) == 1000
    assert {serial.bit_length() for serial in serials} == {144}

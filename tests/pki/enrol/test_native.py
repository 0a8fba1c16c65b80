"""Enrolment end to end: a real authority, a real (emulated) TPM, no listener between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.identity import AttestationClass, State, Verdict
from foundation.reasons import Reason
from foundation.wire.attestation import certified_attestation
from foundation.wire.enrolment import Begin, Issued, Token
from pki.enrol.origin import Origin
from pki.enrol.settings import RateSettings
from pki.entries import Expected
from pki.inventory import Description
from pki.revocation import RevocationReason
from tests.support.installation import installation, post
from tests.support.node import HERE, caller_of, node_id, software_node, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]


@pytest.mark.parametrize("ek", ["EK-ECC256", "EK-RSA2048", "EK-HIGH-ECC384"])
async def test_a_node_with_a_token_enrols(tmp_path: Path, maker: TpmMaker, ek: str) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with booted(tmp_path / "tpm", maker, ek) as device, tpm_node(device) as node:
            issued = await node.enrol(site, await site.token())
        leaf = x509.load_der_x509_certificate(issued.chain[0])
        entry = await site.authority.inventory.get(node_id())
    assert issued.spiffe_id == str(node_id())
    assert issued.attestation == "virtual"
    assert issued.not_after == int(leaf.not_valid_after_utc.timestamp())
    assert issued.not_after - 3600 < issued.renew_after < issued.attested_until <= issued.not_after
    assert entry.record.state is State.ACTIVE
    assert entry.posture.attestation is AttestationClass.VIRTUAL
    assert entry.posture.verdict is Verdict.PASSED
    assert len(entry.ek_sha256) == 32


async def test_an_announced_tpm_needs_no_token(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "first", virtual=(maker.root,)) as first:
        with tpm_node(swtpm) as node:
            await node.enrol(first, await first.token())
        known = (await first.authority.inventory.get(node_id())).ek_sha256
    async with installation(tmp_path / "second", virtual=(maker.root,)) as second:
        await second.authority.inventory.add(Expected(node_id(), tier=2, ek_sha256=known), "ada")
        with tpm_node(swtpm, "") as node:
            issued = await node.enrol(second, None)
    assert issued.spiffe_id == str(node_id())


async def test_a_gateway_enrols_like_a_node(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        gateway = site.id("eu-1", Kind.GATEWAY)
        await site.authority.inventory.add(Expected(gateway), "ada")
        with tpm_node(swtpm, "eu-1") as node:
            token = await site.token("eu-1", Kind.GATEWAY)
            with pytest.raises(Fault) as caught:
                await node.enrol(site, token)
            assert caught.value.reason is Reason.PROFILE_REFUSED  # an entry and a token alone make no gateway
            await site.authority.inventory.describe(
                gateway, Description(labels={"names": "eu.example, 10.0.0.1"}), "ada"
            )
            issued = await node.enrol(site, token)
    assert issued.spiffe_id == "spiffe://fleet.example/gateway/eu-1"
    names = x509.load_der_x509_certificate(issued.chain[0]).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["eu.example"]


async def test_an_attestation_may_end_before_its_certificate(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,), attested_for=600.0) as site:
        with tpm_node(swtpm) as node:
            issued = await node.enrol(site, await site.token())
        now = site.clock.now()
    assert issued.attested_until == int(now + 600)
    assert issued.renew_after < issued.attested_until


async def test_without_a_tpm_where_settings_name_it(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/sensor-*",)) as site:
        node = software_node("sensor-7")
        issued = await node.enrol(site, await site.token("sensor-7"))
        renewed = await node.renew(site, caller_of(issued))
        entry = await site.authority.inventory.get(node_id("sensor-7"))
        with pytest.raises(Fault) as other:
            await software_node("edge-1").enrol(site, await site.token())
        with pytest.raises(Fault) as stranger:
            await software_node("sensor-8").enrol(site, None)
    assert (issued.attestation, issued.attested_until) == ("none", 0)
    assert renewed.chain[0] != issued.chain[0]
    certified = certified_attestation(x509.load_der_x509_certificate(issued.chain[0]))
    assert certified.attestation is entry.posture.attestation is AttestationClass.NONE
    assert other.value.reason is Reason.ATTESTATION_REQUIRED
    assert stranger.value.reason is Reason.ENROLMENT_REFUSED


async def test_possession_is_of_the_key_that_was_named(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        node, thief = software_node(), software_node()
        first = node.begin(await site.token())
        challenge = await site.service.enrolment.begin(first, HERE)
        with pytest.raises(Fault) as caught:
            await site.service.enrolment.complete(thief.complete(first, challenge), HERE)
    assert caught.value.reason is Reason.PROOF_WRONG


async def test_an_identity_with_a_tpm_never_comes_back_without_one(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,), without_tpm=("node/*",)) as site:
        with tpm_node(swtpm) as node:
            caller = caller_of(await node.enrol(site, await site.token()))
        with pytest.raises(Fault) as enrolled:
            await software_node().enrol(site, await site.token())
        with pytest.raises(Fault) as renewed:
            await software_node().renew(site, caller)
    assert enrolled.value.reason is Reason.EK_CHANGED
    assert renewed.value.reason is Reason.ATTESTATION_REQUIRED


async def test_strangers_are_told_one_thing(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    """Whatever is wrong, the answers differ in the request's name alone; the audit log has each exact reason."""
    unknown_maker = TpmMaker.create("Nobody's Maker")
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site, site.enrolling() as address:
        good = await site.token()
        late = await site.token("edge-2", ttl=1.0)
        site.clock.advance(2)
        with booted(tmp_path / "other", unknown_maker) as device, tpm_node(device) as untrusted:
            messages = [untrusted.begin(None)]
        with tpm_node(swtpm) as node:
            messages += [
                node.begin(None),
                node.begin(late),
                node.begin(replace(good, secret=bytes(32))),
                node.begin(replace(good, root_sha256=bytes(32))),
                node.begin(Token(good.root_sha256, bytes(16), bytes(32))),
                node.begin(None, lambda begin: replace(begin, ek_public=begin.ek_public + b"\x00")),
                node.begin(None, lambda begin: replace(begin, ak_public=begin.tls_public)),
                software_node().begin(None),
            ]
        told = set()
        for message in messages:
            status, body = await post(address, "/v1/enrol/begin", message, site.stranger())
            document = json.loads(body)
            document.pop("instance")
            told.add((status, json.dumps(document)))
        reasons = site.reasons("enrol.refused")
    assert len(told) == 1
    assert json.loads(told.pop()[1])["reason"] == "enrolment_refused"
    assert reasons == [
        "ek_chain_untrusted",
        "inventory_unknown",
        "token_expired",
        "token_unknown",
        "token_unknown",
        "token_unknown",
        "tpm_trailing_bytes",
        "ak_attribute",
        "attestation_required",
    ]


async def test_a_proven_token_is_told_the_reason(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site") as site:
        with tpm_node(swtpm) as node, pytest.raises(Fault) as caught:
            await node.enrol(site, await site.token())
    assert caught.value.reason is Reason.EK_CHAIN_UNTRUSTED


@pytest.mark.parametrize("state", ["quarantined", "revoked"])
async def test_who_is_out_does_not_enrol(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker, state: str) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            token = await site.token()
            await node.enrol(site, token)
            if state == "quarantined":
                await site.authority.inventory.quarantine(node_id(), "ada")
            else:
                await site.authority.revocations.revoke_identity(node_id(), RevocationReason.UNSPECIFIED, "ada")
            with pytest.raises(Fault) as caught:
                await node.enrol(site, None)
    assert caught.value.reason is Reason.ENROLMENT_REFUSED
    assert site.reasons("enrol.refused") == ["inventory_state"]


async def test_another_key_of_ours_answers(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        node = software_node()
        first = node.begin(await site.token())
        second = node.complete(first, await site.service.enrolment.begin(first, HERE))
        with pytest.raises(Fault) as caught:
            await site.service.enrolment.complete(second, Origin(HERE.address, b"\x02" * 32))
    assert caught.value.reason is Reason.SERVER_KEY_CHANGED


async def test_one_address_is_slowed_down_and_others_are_not(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", rate=RateSettings(burst=3, per_minute=60)) as site:
        first = software_node().begin(None)

        async def ask(address: str) -> Reason:
            with pytest.raises(Fault) as caught:
                await site.service.enrolment.begin(first, Origin(address, b""))
            return caught.value.reason

        refused, limited = Reason.ENROLMENT_REFUSED, Reason.ENROLMENT_RATE_LIMITED
        assert [await ask("192.0.2.1") for _ in range(5)] == [refused] * 3 + [limited] * 2
        assert await ask("192.0.2.2") is refused
        site.clock.advance(1.0)
        assert [await ask("192.0.2.1") for _ in range(2)] == [refused, limited]


async def test_what_strangers_write_into_the_audit_log_is_bounded(tmp_path: Path) -> None:
    async with installation(tmp_path / "site") as site:
        first = software_node().begin(None)
        for number in range(700):
            with pytest.raises(Fault):
                await site.service.enrolment.begin(first, Origin(f"2001:db8:{number:x}::1", b""))
        site.clock.advance(60)
        with pytest.raises(Fault):
            await site.service.enrolment.begin(first, HERE)
        events = [event for event in site.audit.events if event.kind == "enrol.refused"]
    assert len(events) == 601
    assert events[-1].detail["unrecorded"] == "100"


async def test_nothing_is_told_or_done_when_the_audit_log_fails(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        node = software_node()
        first = node.begin(await site.token())
        second = node.complete(first, await site.service.enrolment.begin(first, HERE))
        site.audit.broken = True
        with pytest.raises(Fault) as caught:
            await site.service.enrolment.complete(second, HERE)
        site.audit.broken = False
        rows = await site.authority.ledger.page(node_id())
    assert caught.value.reason is Reason.AUDIT_FAILED
    assert rows == ()


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"version": 2}', b"x" * 70_000])
async def test_malformed_messages_are_named(tmp_path: Path, raw: bytes) -> None:
    async with installation(tmp_path / "site") as site:
        for ask in (site.service.enrolment.begin, site.service.enrolment.complete):
            with pytest.raises(Fault) as caught:
                await ask(raw, HERE)
            assert caught.value.reason in (Reason.MESSAGE_MALFORMED, Reason.MESSAGE_TOO_LARGE)
        assert len(site.reasons("enrol.refused")) == 2


async def test_a_renewal_is_no_enrolment(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        node = software_node()
        with pytest.raises(Fault) as begun:
            await site.service.enrolment.begin(node.begin_renewal(), HERE)
        caller = caller_of(await node.enrol(site, await site.token()))
        first = node.begin_renewal()
        second = node.complete(first, await site.service.renewal.begin(first, caller, HERE))
        with pytest.raises(Fault) as completed:
            await site.service.enrolment.complete(second, HERE)
    assert begun.value.field == "begin.purpose"
    assert completed.value.reason is Reason.SESSION_UNKNOWN


async def test_a_renewal_says_again_nothing_that_is_on_record(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            caller = caller_of(await node.enrol(site, await site.token()))
            token = await site.token("edge-2")
            for bend in (
                lambda begin: replace(begin, token=token.encode()),
                lambda begin: replace(begin, ek_public=b"x"),
                lambda begin: replace(begin, node="edge-2"),
            ):
                with pytest.raises(Fault) as caught:
                    await site.service.renewal.begin(node.begin_renewal(bend), caller, HERE)
                assert caught.value.reason is Reason.MESSAGE_MALFORMED
            site.clock.advance(60)
            first = node.begin_renewal(lambda begin: replace(begin, ak_public=b"", node=""))
            second = node.complete(first, await site.service.renewal.begin(first, caller, HERE))
            renewed = Issued.parse(await site.service.renewal.complete(second, caller, HERE))
    assert Begin.parse(first).ak_public == b""
    assert renewed.attestation == "virtual"

"""The agent and the real authority, over real listeners: enrolment, renewal, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from agent.certificate import Certificate
from agent.enrol import enrol, enrol_again
from agent.renew import renew
from agent.settings import AgentSettings
from agent.store import NodeStore
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.revocation_reason import RevocationReason
from tests.support.agent import EagerClock, quiet
from tests.support.installation import Installation, installation
from tests.support.swtpm import CERTIFICATE_INDEX, EmulatedTpm, TpmMaker, booted, maker, set_up_by_swtpm, swtpm

__all__ = ["maker", "swtpm"]  # fixtures


async def enrolled(site: Installation, folder: Path, device: EmulatedTpm) -> tuple[AgentSettings, NodeStore]:
    settings = AgentSettings(directory=folder / "node", tcti=device.tcti, event_log=device.event_log, timeout=10)
    store = NodeStore(settings.directory)
    async with site.enrolling() as address:
        settings = replace(settings, authority=address)
        await enrol(settings, await site.token(), store, EagerClock(), quiet)
    return settings, store


@pytest.mark.parametrize("ek", sorted(CERTIFICATE_INDEX))
async def test_a_node_enrols_and_renews(ek: str, tmp_path: Path, maker: TpmMaker) -> None:
    with booted(tmp_path / "tpm", maker, ek) as device:
        async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
            settings, store = await enrolled(site, tmp_path, device)
            first = store.identity()
            async with site.serving() as address:
                second = await renew(replace(settings, renewal=address), store, EagerClock(), quiet)
    assert first.issued.spiffe_id == second.issued.spiffe_id == "spiffe://fleet.example/node/edge-1"
    assert first.issued.attestation == second.issued.attestation == "virtual"
    assert first.issued.chain[0] != second.issued.chain[0]
    assert first.key != second.key


async def test_a_device_of_swtpm_setup_enrols(tmp_path: Path) -> None:
    device, (root, issuer) = set_up_by_swtpm(tmp_path / "tpm")
    anchors = tuple(x509.load_pem_x509_certificate(pem) for pem in (root, issuer))
    with device:
        async with installation(tmp_path / "site", virtual=anchors) as site:
            _, store = await enrolled(site, tmp_path, device)
    assert store.identity().issued.attestation == "virtual"


async def test_an_unknown_maker_is_refused(tmp_path: Path, swtpm: EmulatedTpm) -> None:
    async with installation(tmp_path / "site", virtual=(TpmMaker.create().root,)) as site:
        with pytest.raises(Fault) as caught:
            await enrolled(site, tmp_path, swtpm)
    assert caught.value.reason is Reason.EK_CHAIN_UNTRUSTED


async def test_a_used_token_is_refused(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site, site.enrolling() as address:
        settings = AgentSettings(tmp_path / "node", address, tcti=swtpm.tcti, event_log=swtpm.event_log, timeout=10)
        token, store = await site.token(), NodeStore(settings.directory)
        await enrol(settings, token, store, EagerClock(), quiet)
        before = store.identity()
        with pytest.raises(Fault):
            await enrol(settings, token, store, EagerClock(), quiet)
    assert store.identity() == before


async def test_a_second_message_repeated_after_the_answer_gets_the_same_certificate(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site, site.enrolling() as address:
        settings = AgentSettings(tmp_path / "node", address, tcti=swtpm.tcti, event_log=swtpm.event_log, timeout=10)
        store = NodeStore(settings.directory)
        with monkeypatch.context() as patched:
            patched.setattr(NodeStore, "save", _crash)
            with pytest.raises(KeyboardInterrupt):
                await enrol(settings, await site.token(), store, EagerClock(), quiet)
        assert store.pending()
        identity = await enrol(settings, await site.token("edge-2"), store, EagerClock(), quiet)
        entry = await site.authority.inventory.get(site.id("edge-1"))
    leaf = x509.load_der_x509_certificate(identity.issued.chain[0])
    assert entry.current_serial == format(leaf.serial_number, "x")
    assert store.pending() is None


async def test_a_renewal_whose_answer_was_lost_gets_the_same_certificate(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        settings, store = await enrolled(site, tmp_path, swtpm)
        async with site.serving() as address:
            settings = replace(settings, renewal=address)
            with monkeypatch.context() as patched:
                patched.setattr(NodeStore, "save", _crash)
                with pytest.raises(KeyboardInterrupt):
                    await renew(settings, store, EagerClock(), quiet)
            entry = await site.authority.inventory.get(site.id("edge-1"))
            identity = await renew(settings, store, EagerClock(), quiet)
    leaf = x509.load_der_x509_certificate(identity.issued.chain[0])
    assert entry.current_serial == format(leaf.serial_number, "x")


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


async def test_a_node_whose_certificate_ended_enrols_again_by_its_tpm_alone(tmp_path: Path, maker: TpmMaker) -> None:
    """The authority was away for longer than a certificate lives: no token is needed, and no hand."""
    with booted(tmp_path / "tpm", maker) as device:
        async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
            settings, store = await enrolled(site, tmp_path, device)
            first = store.identity()
            site.clock.advance(first.issued.not_after - site.clock.now() + 1)
            async with site.enrolling() as address, site.serving() as api:
                settings = replace(settings, authority=address, renewal=api)
                with Tpm(device.tcti) as tpm:
                    certificate = Certificate(settings, store, first, tpm, lambda: None)
                    await certificate.renew(site.clock)
    second = store.identity()
    assert certificate.identity == second
    assert second.issued.spiffe_id == first.issued.spiffe_id
    assert second.issued.not_after > first.issued.not_after


async def test_a_node_that_is_revoked_does_not_come_back_by_its_tpm(tmp_path: Path, maker: TpmMaker) -> None:
    with booted(tmp_path / "tpm", maker) as device:
        async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
            settings, store = await enrolled(site, tmp_path, device)
            await site.authority.revocations.revoke_identity(site.id("edge-1"), RevocationReason.KEY_COMPROMISE, "ada")
            async with site.enrolling() as address:
                with Tpm(device.tcti) as tpm, pytest.raises(Fault) as caught:
                    await enrol_again(replace(settings, authority=address), store, EagerClock(), quiet, tpm)
    assert caught.value.reason in {Reason.ENROLMENT_REFUSED, Reason.IDENTITY_REVOKED, Reason.INVENTORY_STATE}

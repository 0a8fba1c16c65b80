"""Attack class "renewal with a stolen, old, revoked or sibling certificate" (CVE-2026-39388, spire#27): each is
refused; a second live holder raises a clone alarm."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from foundation.faults import Fault
from foundation.identity import Verdict
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.tls import client_context
from pki.revocation_reason import RevocationReason
from tests.support.certificates import write_pair
from tests.support.installation import Installation, installation, post
from tests.support.node import HERE, Node, caller_of, node_id, software_node, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]


async def _refusal(node: Node, site: Installation, caller: Caller) -> Reason:
    with pytest.raises(Fault) as caught:
        await node.renew(site, caller)
    return caught.value.reason


async def _verdict(site: Installation, name: str = "edge-1") -> Verdict:
    return (await site.authority.inventory.get(node_id(name))).posture.verdict


async def test_stolen_into_another_machine(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    """Certificate and TLS key were carried off; the AK was not. Whoever holds them lacks the TPM, and that is told."""
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            caller = caller_of(await node.enrol(site, await site.token()))
        with booted(tmp_path / "other", maker) as device, tpm_node(device) as thief:
            assert await _refusal(thief, site, caller) is Reason.EK_CHANGED
        assert len(await site.authority.ledger.page(node_id())) == 1


async def test_an_old_one_is_refused_and_alarms_once_the_newer_is_in_use(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            old = caller_of(await node.enrol(site, await site.token()))
            site.clock.advance(60)
            new = caller_of(await node.renew(site, old))
            # Nobody was seen with the newer one yet: its reply may be lost. Refused, without an alarm.
            assert await _refusal(node, site, old) is Reason.CERTIFICATE_SUPERSEDED
            assert await _verdict(site) is Verdict.PASSED
            await site.service.renewal.begin(node.begin_renewal(), new, HERE)
            # Now two live.
            assert await _refusal(node, site, old) is Reason.CLONE_SUSPECTED
            assert await _verdict(site) is Verdict.FAILED
            assert await _refusal(node, site, new) is Reason.ATTESTATION_LATCHED
        assert site.reasons("renew.refused") == [
            "certificate_superseded",
            "clone_suspected",
            "attestation_latched",
        ]
        assert site.reasons("attestation.failed") == ["clone_suspected"]


async def test_two_generations_old_alarms_without_having_been_seen(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            old = caller_of(await node.enrol(site, await site.token()))
            for _ in range(2):
                site.clock.advance(60)
                await node.enrol(site, None)
            assert await _refusal(node, site, old) is Reason.CLONE_SUSPECTED


async def test_revoked(tmp_path: Path) -> None:
    """Over the listener: the node is shut out before its message is looked at."""
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site, site.serving() as address:
        node = software_node()
        issued = await node.enrol(site, await site.token())
        own = _context(site, node, issued.chain, tmp_path)
        status, _ = await post(address, "/v1/renew/begin", node.begin_renewal(), own)
        assert status == 200
        await site.authority.revocations.revoke_identity(node_id(), RevocationReason.KEY_COMPROMISE, "ada")
        status, body = await post(address, "/v1/renew/begin", node.begin_renewal(), own)
    assert status == 403
    assert b"identity_revoked" in body


async def test_a_siblings(tmp_path: Path) -> None:
    """Another node's valid certificate renews neither this node's name nor this node's session."""
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        node, sibling = software_node(), software_node("edge-2")
        own = caller_of(await node.enrol(site, await site.token()))
        other = caller_of(await sibling.enrol(site, await site.token("edge-2")))
        with pytest.raises(Fault) as name:
            await site.service.renewal.begin(node.begin_renewal(), other, HERE)
        first = node.begin_renewal()
        second = node.complete(first, await site.service.renewal.begin(first, own, HERE))
        with pytest.raises(Fault) as session:
            await site.service.renewal.complete(second, other, HERE)
        assert name.value.field == "begin.node"
        assert session.value.reason is Reason.SESSION_UNKNOWN
        assert len(await site.authority.ledger.page()) == 4  # listener, operator, and the two first ones


async def test_an_operators(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        node = software_node()
        caller = Caller(site.id("admin", node_id().kind.OPERATOR), (), "certificate", "1")
        assert await _refusal(node, site, caller) is Reason.KIND_NOT_ALLOWED


def _context(site: Installation, node: Node, chain: tuple[bytes, ...], folder: Path) -> ssl.SSLContext:
    key = node.prover.key.private_key()
    pair = write_pair(folder, "node", x509.load_der_x509_certificate(chain[0]), key)
    issuing = x509.load_der_x509_certificate(chain[1])
    pair.certificate.write_bytes(pair.certificate.read_bytes() + issuing.public_bytes(Encoding.PEM))
    return client_context(site.root_pem, pair=pair)

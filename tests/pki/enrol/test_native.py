"""Enrolment end to end: a real authority, a real (emulated) TPM, no listener between them."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from foundation.identity import AttestationClass, State, Verdict
from tests.support.installation import installation
from tests.support.node import node_id, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


async def test_a_node_with_a_token_enrols(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            issued = await node.enrol(site, await site.token())
        leaf = x509.load_der_x509_certificate(issued.chain[0])
        entry = await site.authority.inventory.get(node_id())
    assert issued.spiffe_id == str(node_id())
    assert issued.attestation == "virtual"
    assert issued.not_after == int(leaf.not_valid_after_utc.timestamp())
    assert issued.not_after - 3600 < issued.renew_after < issued.not_after
    assert issued.attested_until <= issued.not_after
    assert entry.record.state is State.ACTIVE
    assert entry.posture.attestation is AttestationClass.VIRTUAL
    assert entry.posture.verdict is Verdict.PASSED
    assert len(entry.ek_sha256) == 32

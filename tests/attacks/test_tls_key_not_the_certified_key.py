"""Attack class "TLS key not the certified key" (spire#6134): a request with another key, a certify of another key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.evidence import Exchange
from agent.tlskey import SoftwareTlsKey, create_csr
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Challenge, Evidence
from tests.support.installation import installation
from tests.support.node import Node, new_prover, node_id, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


async def test_a_request_with_a_software_key(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    def swapped(evidence: Evidence) -> Evidence:
        return replace(evidence, csr=create_csr(SoftwareTlsKey.generate()))

    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node, pytest.raises(Fault) as caught:
            await node.enrol(site, await site.token(), swapped)
        assert caught.value.reason is Reason.CSR_KEY_MISMATCH
        assert await site.authority.ledger.page(node_id()) == ()


async def test_a_certify_of_another_key_of_the_same_tpm(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with Tpm(swtpm.tcti) as tpm:
            node, other = (Node(new_prover(tpm, swtpm.event_log)) for _ in range(2))
            first = node.begin(await site.token())
            challenge = await site.service.enrolment.begin(first, node.origin)
            key = node.origin.server_spki_sha256
            certified = other.prover.evidence(Exchange("enrol", first, Challenge.parse(challenge), key))

            def swapped(evidence: Evidence) -> Evidence:
                attest, signature = certified.certify_attest, certified.certify_signature
                return replace(evidence, certify_attest=attest, certify_signature=signature)

            second = node.complete(first, challenge, swapped)
            with pytest.raises(Fault) as caught:
                await site.service.enrolment.complete(second, node.origin)
        assert caught.value.reason is Reason.ATTEST_NAME
        assert await site.authority.ledger.page(node_id()) == ()


async def test_a_relays_own_tls_key_shows(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    """Who sits between node and authority has another TLS key: what the TPM signs is bound to the one it saw."""
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        token = await site.token()
        with tpm_node(swtpm) as node:
            first = node.begin(token)
            challenge = await site.service.enrolment.begin(first, node.origin)
            deceived = replace(node, origin=replace(node.origin, server_spki_sha256=b"\x66" * 32))
            second = deceived.complete(first, challenge)
            with pytest.raises(Fault) as caught:
                await site.service.enrolment.complete(second, node.origin)
        assert caught.value.reason is Reason.ATTEST_NONCE

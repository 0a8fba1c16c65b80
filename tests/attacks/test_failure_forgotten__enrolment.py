"""Attack class "failure forgotten" (keylime class): FAIL, silence, a good quote: failed until an operator clears it.

By the protocol's messages: the same TPM boots something else once; that stays on record over restarts of both sides.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.demo.measured_boot import healthy_boot
from foundation.faults import Fault
from foundation.identity import Verdict
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.wire.enrolment import Issued
from pki.enrol.judgement import Trust
from pki.tpm.endorsement import MakerTrust
from pki.tpm.reference import PcrReference, ReferenceValues
from tests.support.installation import Installation, installation
from tests.support.node import Node, caller_of, node_id, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


def _read_pcr(device: EmulatedTpm, index: int) -> bytes:
    from tpm2_pytss.types import TPML_PCR_SELECTION

    with device.esapi() as esapi:
        _, _, digests = esapi.pcr_read(TPML_PCR_SELECTION.parse(f"sha256:{index}"))
        return bytes(digests[0])


def _healthy(device: EmulatedTpm, maker: TpmMaker) -> Trust:
    reference = PcrReference(values=frozenset({_read_pcr(device, 0)}))
    return Trust(MakerTrust(virtual=(maker.root,)), {"default": ReferenceValues("sha256", {0: reference})})


async def _reason_of(node: Node, site: Installation, caller: Caller) -> Reason:
    with pytest.raises(Fault) as caught:
        await node.renew(site, caller)
    return caught.value.reason


async def test_a_failure_stays_until_it_is_cleared(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", trust=_healthy(swtpm, maker)) as site:
        with tpm_node(swtpm) as node:
            issued: Issued = await node.enrol(site, await site.token())
        caller = caller_of(issued)
        swtpm.shut_down()
        swtpm.boot(healthy_boot(firmware="another"))
        with tpm_node(swtpm) as node:
            assert await _reason_of(node, site, caller) is Reason.REFERENCE_MISMATCH
        site.clock.advance(600)
        swtpm.shut_down()
        swtpm.boot()
        with tpm_node(swtpm) as node:
            assert await _reason_of(node, site, caller) is Reason.ATTESTATION_LATCHED
            site.service = site.another_process()
            assert await _reason_of(node, site, caller) is Reason.ATTESTATION_LATCHED
            with pytest.raises(Fault):
                await node.enrol(site, None)
            entry = await site.authority.inventory.get(node_id())
            assert entry.posture.verdict is Verdict.FAILED
            assert entry.latched == Reason.REFERENCE_MISMATCH.code
            await site.authority.inventory.clear_failure(node_id(), "ada")
            await node.renew(site, caller)
        assert "attestation.failed" in site.audit.kinds()
        assert (await site.authority.inventory.get(node_id())).posture.verdict is Verdict.PASSED

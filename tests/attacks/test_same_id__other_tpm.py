"""Attack class "same ID, other TPM" (CVE-2025-13609): a node's name enrolled again with another TPM."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identity import Verdict
from foundation.reasons import Reason
from tests.support.installation import installation
from tests.support.node import caller_of, node_id, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]


async def test_another_tpm_does_not_take_a_nodes_name(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            issued = await node.enrol(site, await site.token())
            before = await site.authority.inventory.get(node_id())
            token = await site.token()
            with booted(tmp_path / "other", maker) as device, tpm_node(device) as impostor:
                with pytest.raises(Fault) as caught:
                    await impostor.enrol(site, token)
                with pytest.raises(Fault) as stranger:
                    await impostor.enrol(site, None)
            site.clock.advance(60)
            renewed = await node.renew(site, caller_of(issued))
        after = await site.authority.inventory.get(node_id())
        assert caught.value.reason is Reason.EK_CHANGED
        assert stranger.value.reason is Reason.ENROLMENT_REFUSED
        assert site.reasons("enrol.refused") == ["ek_changed", "inventory_unknown"]
        assert after.ek_sha256 == before.ek_sha256
        assert after.posture.verdict is Verdict.PASSED
        assert renewed.spiffe_id == issued.spiffe_id


async def test_one_tpm_is_one_node(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            await node.enrol(site, await site.token())
        with tpm_node(swtpm, "edge-2") as again, pytest.raises(Fault) as caught:
            await again.enrol(site, await site.token("edge-2"))
        assert caught.value.reason is Reason.EK_TAKEN
        assert await site.authority.ledger.page(node_id("edge-2")) == ()

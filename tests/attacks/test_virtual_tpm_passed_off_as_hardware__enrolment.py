"""Attack class "virtual TPM passed off as hardware" (defguard#3359), by the protocol's messages: an emulator's root
gives the class `virtual`, in certificate and posture; production refuses it, whatever its other settings say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.attestation import certified_attestation
from tests.support.installation import installation, post
from tests.support.node import node_id, software_node, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


@pytest.mark.parametrize("classes", [("hardware",), ("hardware", "virtual")])
async def test_production_refuses_an_emulator(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker, classes: tuple[str, ...]
) -> None:
    async with (
        installation(tmp_path / "site", virtual=(maker.root,), production=True, classes=classes) as site,
        site.enrolling() as address,
    ):
        with tpm_node(swtpm) as node:
            first = node.begin(await site.token())
            nameless = node.begin(None)
        status, body = await post(address, "/v1/enrol/begin", first, site.stranger())
        _, stranger = await post(address, "/v1/enrol/begin", nameless, site.stranger())
        assert (status, json.loads(body)["reason"]) == (403, "tpm_class_refused")
        assert json.loads(stranger)["reason"] == "enrolment_refused"
        assert site.reasons("enrol.refused") == ["tpm_class_refused", "tpm_class_refused"]
        assert await site.authority.ledger.page(node_id()) == ()


async def test_production_refuses_no_tpm_at_all(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", production=True, without_tpm=("node/*",)) as site:
        with pytest.raises(Fault) as caught:
            await software_node().enrol(site, await site.token())
        assert caught.value.reason is Reason.ATTESTATION_REQUIRED


async def test_the_class_is_the_roots_and_stands_in_certificate_and_posture(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            issued = await node.enrol(site, await site.token())
        entry = await site.authority.inventory.get(node_id())
    certified = certified_attestation(x509.load_der_x509_certificate(issued.chain[0]))
    assert issued.attestation == "virtual"
    assert certified.attestation is entry.posture.attestation is AttestationClass.VIRTUAL


async def test_production_asks_for_reference_values(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    """The maker stands for one of hardware here: then the rest of production still holds."""
    async with installation(tmp_path / "site", hardware=(maker.root,), production=True, classes=("hardware",)) as site:
        with tpm_node(swtpm) as node, pytest.raises(Fault) as caught:
            await node.enrol(site, await site.token())
        assert caught.value.reason is Reason.REFERENCE_MISSING

"""Attack class "AK not bound to EK", by the protocol's messages: another TPM's EK certificate, a relayed credential.

The credential is made for the EK and the Name of the AK: only the TPM that holds both frees its secret, and without the
secret there is no proof.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin, Challenge, Token
from tests.support.installation import installation
from tests.support.node import HERE, Node, node_id, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]


def _with_ek_of(victim: Node, attacker: Node, token: Token) -> Begin:
    shown, own = (each.prover.begin("enrol", "edge-1", token.encode()) for each in (victim, attacker))
    return replace(own, ek_certificate=shown.ek_certificate, ek_chain=shown.ek_chain, ek_public=shown.ek_public)


@pytest.mark.parametrize("guess", [b"\x00" * 32, b"\x00" * 31, b""])
async def test_a_foreign_ek_is_of_no_use(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker, guess: bytes) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        token = await site.token()
        with booted(tmp_path / "other", maker) as device, tpm_node(swtpm) as victim, tpm_node(device) as attacker:
            first = _with_ek_of(victim, attacker, token).encode()
            challenge = await site.service.enrolment.begin(first, HERE)
            with pytest.raises(Fault, match="integrity check failed"):
                attacker.prover.activated_secret(Challenge.parse(challenge))
            second = attacker.complete(first, challenge, secret=guess)
            with pytest.raises(Fault) as caught:
                await site.service.enrolment.complete(second, HERE)
        assert caught.value.reason is Reason.PROOF_WRONG
        assert site.reasons("enrol.refused") == ["proof_wrong"]
        assert await site.authority.ledger.page(node_id()) == ()


async def test_a_relay_to_the_tpm_of_the_ek_frees_nothing(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        token = await site.token()
        with booted(tmp_path / "other", maker) as device, tpm_node(swtpm) as victim, tpm_node(device) as attacker:
            first = _with_ek_of(victim, attacker, token).encode()
        challenge = Challenge.parse(await site.service.enrolment.begin(first, HERE))
        with Tpm(swtpm.tcti) as tpm, pytest.raises(Fault, match="integrity check failed"):
            tpm.activate("EK-ECC256", challenge.credential_blob, challenge.encrypted_secret)

"""Row "same ID, other TPM" (CVE-2025-13609), in continuous re-attestation: the AK of another node, and evidence of a
healthy node relayed through the certificate of one that is not. Neither moves the deadline of either, and neither fails
the node that is well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.wire.reattestation import Push
from tests.support.attesting import AttestingNode, attesting_node
from tests.support.installation import Installation, installation

Pair = tuple[AttestingNode, AttestingNode]


@pytest.fixture(name="pair")
async def _pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """A node that is well, and one that would like to pass for well."""
    async with installation(tmp_path / "site") as site:
        well, bad = await attesting_node(site), await attesting_node(site, "edge-2")
        await well.ask()
        await bad.ask()
        yield well, bad


async def refused(pair: Pair, sender: AttestingNode, message: Push, caller: Caller | None = None) -> Reason:
    """Why it is; nothing has moved or failed."""
    site = sender.site
    before = [await site.authority.rounds.read(node.caller.id) for node in pair]
    with pytest.raises(Fault) as caught:
        await sender.send(message, caller)
    assert [await site.authority.rounds.read(node.caller.id) for node in pair] == before
    return caught.value.reason


async def test_the_ak_of_another_node_proves_nothing(pair: Pair) -> None:
    """The other's TPM quotes over our nonce, with everything else in order."""
    well, bad = pair
    bad.tpm = replace(bad.tpm, ak=well.tpm.ak)
    assert await refused(pair, bad, bad.message()) is Reason.ATTEST_SIGNATURE


async def test_evidence_of_a_healthy_node_is_of_no_use_to_another(pair: Pair) -> None:
    well, bad = pair
    assert await refused(pair, bad, well.message()) is Reason.ATTEST_SIGNATURE
    await well.push()


async def test_the_nonce_of_one_node_is_none_for_another(pair: Pair) -> None:
    """The node that is well would sign it: it is asked in the other's name."""
    well, bad = pair
    well.next, bad.next = bad.next, well.next
    for node in pair:
        assert await refused(pair, node, node.message()) is Reason.ATTEST_NONCE


@pytest.mark.parametrize("said", ["identity", "serial", "authority"])
async def test_the_quote_says_for_whom_it_is(pair: Pair, said: str) -> None:
    """Signed by the very AK over the very nonce, but for another node, certificate or authority."""
    well, bad = pair
    assert well.next is not None
    other = {"identity": str(bad.caller.id), "serial": bad.caller.serial, "authority": b"\x05" * 32}[said]
    over = well.qualifying(well.next.nonce, **{said: other})
    assert await refused(pair, well, well.message(quote=well.quote(over, well.next.pcrs))) is Reason.ATTEST_NONCE
    await well.push()


async def test_a_certificate_that_was_replaced_attests_nothing(pair: Pair) -> None:
    well, _ = pair
    old = well.caller
    well.tick(1)
    await well.renew()
    assert await refused(pair, well, well.message(), old) is Reason.CERTIFICATE_SUPERSEDED
    assert await refused(pair, well, Push(), old) is Reason.CERTIFICATE_SUPERSEDED


async def test_two_certificates_of_one_nonce(pair: Pair) -> None:
    """What was signed for the certificate before is nothing for the next."""
    well, _ = pair
    before = well.message()
    well.tick(1)
    await well.renew()
    assert await refused(pair, well, before) is Reason.ATTEST_NONCE


@pytest.mark.parametrize("via", ["jwt", "socket"])
async def test_only_a_certificate_attests(pair: Pair, via: str) -> None:
    well, _ = pair
    assert await refused(pair, well, well.message(), replace(well.caller, via=via)) is Reason.KIND_NOT_ALLOWED


async def test_an_operator_attests_nothing(pair: Pair) -> None:
    well, _ = pair
    site: Installation = well.site
    caller = replace(well.caller, id=site.id("ada", Kind.OPERATOR))
    assert await refused(pair, well, well.message(), caller) is Reason.KIND_NOT_ALLOWED

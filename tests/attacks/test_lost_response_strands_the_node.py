"""Attack class "lost response strands the node" (spire#2910, #2454): whichever reply is lost, the node goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Issued
from pki.enrol.origin import Origin
from tests.support.installation import installation, post
from tests.support.node import HERE, Node, caller_of, node_id, software_node, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


async def test_the_challenge_is_lost(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        token = await site.token()
        with tpm_node(swtpm) as node:
            await site.service.enrolment.begin(node.begin(token), HERE)
            await site.service.enrolment.begin(node.begin(token), HERE)
            issued = await node.enrol(site, token)
    assert issued.spiffe_id == str(node_id())


async def test_the_certificate_is_lost(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    """Over the listener, in another process, near the certificate's end: the same bytes get the same certificate."""
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site, site.enrolling() as address:
        spki = site.context(mutual=False).spki_sha256
        with tpm_node(swtpm) as inner:
            node = Node(inner.prover, origin=Origin("127.0.0.1", spki))
            first = node.begin(await site.token())
            _, challenge = await post(address, "/v1/enrol/begin", first, site.stranger())
            second = node.complete(first, challenge)
        status, lost = await post(address, "/v1/enrol/complete", second, site.stranger())
        assert status == 200
        again = await post(address, "/v1/enrol/complete", second, site.stranger())
        site.clock.advance(3400)
        elsewhere = await site.another_process().enrolment.complete(second, node.origin)
        site.clock.advance(300)
        with pytest.raises(Fault) as over:
            await site.service.enrolment.complete(second, node.origin)
        rows = await site.authority.ledger.page(node_id())
    assert again == (200, lost)
    assert elsewhere == lost
    assert len(rows) == 1
    assert over.value.reason is Reason.SESSION_UNKNOWN


async def test_the_node_asks_again_while_it_is_being_judged(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/edge-1",)) as site:
        node = software_node()
        first = node.begin(await site.token())
        second = node.complete(first, await site.service.enrolment.begin(first, HERE))
        gave_up = asyncio.create_task(site.service.enrolment.complete(second, HERE))
        waiting = [asyncio.create_task(site.service.enrolment.complete(second, HERE)) for _ in range(3)]
        await asyncio.sleep(0)
        gave_up.cancel()
        answers = await asyncio.gather(*waiting)
        rows = await site.authority.ledger.page(node_id())
    assert len(set(answers)) == 1
    assert len(rows) == 1


async def test_the_renewed_certificate_is_lost(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            caller = caller_of(await node.enrol(site, await site.token()))
            first = node.begin_renewal()
            challenge = await site.service.renewal.begin(first, caller, HERE)
            second = node.complete(first, challenge)
            lost = await site.service.renewal.complete(second, caller, HERE)
            assert await site.service.renewal.complete(second, caller, HERE) == lost
            site.clock.advance(60)
            # The next renewal comes from the certificate that was nearly lost.
            await node.renew(site, caller_of(Issued.parse(lost)))


async def test_a_node_that_lost_everything_enrols_again_by_its_tpm(
    tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker
) -> None:
    """The message is lost for good (a crash before it was on disk): the inventory knows the TPM, no token is needed."""
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            await node.enrol(site, await site.token())
            site.clock.advance(60)
            assert (await node.enrol(site, None)).spiffe_id == str(node_id())

"""Runtime measurements in rounds: each entry once, the whole log where what is known does not carry on.

The logs are written by hand in the kernel's format (`tests.support.attesting.ima_entry`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.measurements import RUNTIME_PCR
from pki.enrol.judgement import Trust
from pki.tpm.ima import RuntimeReference
from pki.tpm.reference import ReferenceValues
from tests.support.attesting import AttestingNode, attesting_node, ima_entry, pcr_10
from tests.support.installation import installation

BOOT = ima_entry(b"boot_aggregate", bytes(range(32)))
GOOD, OTHER, BAD = (bytes([octet]) * 32 for octet in (0x11, 0x22, 0x66))


def reference(*digests: bytes) -> Trust:
    return Trust(references={"default": ReferenceValues("sha256", {}, RuntimeReference(frozenset(digests)))})


@pytest.fixture(name="node")
async def _node(tmp_path: Path) -> AsyncIterator[AttestingNode]:
    async with installation(tmp_path / "site", trust=reference(GOOD, OTHER)) as site:
        node = await attesting_node(site)
        node.log = [BOOT, ima_entry(b"/usr/bin/agent", GOOD)]
        await node.ask()
        await node.push()
        node.tick()
        yield node


async def refused(node: AttestingNode, **changes: object) -> Reason:
    with pytest.raises(Fault) as caught:
        await node.send(node.message(**changes))
    return caught.value.reason


async def is_latched(node: AttestingNode) -> bool:
    return bool((await node.site.authority.inventory.get(node.caller.id)).latched)


async def test_pcr_10_is_asked_for(node: AttestingNode) -> None:
    assert node.next is not None
    assert node.next.measured
    assert RUNTIME_PCR in node.next.pcrs.indices


async def test_an_entry_is_sent_once(node: AttestingNode) -> None:
    assert node.message().measurements == b""
    await node.push()
    node.log.append(ima_entry(b"/usr/lib/x.so", OTHER, sig=b"s" * 64))
    assert (node.message().measured_from, node.message().measurements) == (2, node.log[2])
    await node.push()
    _, state = await node.site.authority.rounds.read(node.caller.id)
    assert (state.measured, state.measured_pcr) == (3, pcr_10(node.log))


async def test_the_whole_log_is_taken_at_any_time(node: AttestingNode) -> None:
    node.log.append(ima_entry(b"/usr/lib/x.so", OTHER))
    node.whole = True
    await node.push()


@pytest.mark.parametrize("since", [1, 3, 2**31])
async def test_a_log_from_elsewhere_is_asked_for_whole(node: AttestingNode, since: int) -> None:
    assert await refused(node, measured_from=since) is Reason.EVIDENCE_INCOMPLETE
    assert not await is_latched(node)
    await node.push()


async def test_entries_that_are_left_out_prove_nothing(node: AttestingNode) -> None:
    """What ran is in PCR 10, whatever is left out of the log."""
    node.log.append(ima_entry(b"/tmp/implant", BAD))
    for sent in (b"", ima_entry(b"/usr/bin/agent", GOOD), ima_entry(b"/tmp/implant", GOOD)):
        assert await refused(node, measurements=sent) is Reason.MEASUREMENTS_MISMATCH
    assert not await is_latched(node)


async def test_an_entry_counts_once_it_is_borne_out(node: AttestingNode) -> None:
    """A log that says more than the quote fails nobody: nothing signed says that it ran."""
    sent = ima_entry(b"/tmp/implant", BAD)
    assert await refused(node, measurements=sent) is Reason.MEASUREMENTS_MISMATCH
    assert not await is_latched(node)


async def test_a_reset_begins_the_log_anew(node: AttestingNode) -> None:
    node.log.append(ima_entry(b"/usr/lib/x.so", OTHER))
    await node.push()
    node.reset()
    await node.ask()
    await node.push()
    _, state = await node.site.authority.rounds.read(node.caller.id)
    assert state.measured == 1


async def test_a_log_of_the_boot_before_carries_nothing_on(node: AttestingNode) -> None:
    node.reset()
    await node.ask()
    assert await refused(node, measured_from=2, measurements=b"") is Reason.MEASUREMENTS_MISMATCH


async def test_a_kernel_that_measures_nothing_does_not_pass(node: AttestingNode) -> None:
    node.reset()
    node.log = []
    await node.ask()
    assert await refused(node) is Reason.MEASUREMENTS_MISMATCH
    assert not await is_latched(node)


async def test_a_changed_list_judges_what_ran_before_too(node: AttestingNode) -> None:
    node.log.append(ima_entry(b"/usr/lib/x.so", OTHER))
    await node.push()
    node.site.trust = reference(GOOD)
    node.site.service = node.site.another_process()
    node.tick()
    assert await refused(node) is Reason.EVIDENCE_INCOMPLETE
    node.whole = True
    assert await refused(node) is Reason.MEASUREMENT_UNKNOWN
    assert await is_latched(node)


async def test_without_a_list_nothing_of_it_is_asked(node: AttestingNode) -> None:
    node.site.trust = Trust()
    node.site.service = node.site.another_process()
    node.tick()
    assert await refused(node) is Reason.QUOTE_SELECTION  # the nonce was for more PCRs
    asked = await node.ask()
    assert not asked.measured
    assert RUNTIME_PCR not in asked.pcrs.indices
    await node.push()

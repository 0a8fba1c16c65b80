"""Row "failure forgotten" (keylime class), in continuous re-attestation: FAIL, silence, then a good quote: still failed
until an operator clears it, over restarts and by every way in. And the reverse: rubbish that anybody can send fails no
node, or everybody could shut out everybody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.demo.measured_boot import healthy_boot
from foundation.faults import Fault
from foundation.identity import PostureChanged, Verdict
from foundation.reasons import Reason
from foundation.wire.reattestation import Push
from pki.enrol.judgement import Trust
from pki.tpm.ima import RuntimeReference
from pki.tpm.reference import PcrReference, ReferenceValues
from tests.support.attesting import MAKER, AttestingNode, attesting_node, ima_entry
from tests.support.installation import installation
from tests.support.soft_tpm import PCRS, SoftTpm, signature

GOOD = b"\x11" * 32
REFERENCE = ReferenceValues(
    "sha256",
    {0: PcrReference(values=frozenset({SoftTpm(MAKER).values(PCRS)[0]}))},
    RuntimeReference(frozenset({GOOD})),
)


@pytest.fixture(name="node")
async def _node(tmp_path: Path) -> AsyncIterator[AttestingNode]:
    async with installation(tmp_path / "site", trust=Trust(references={"default": REFERENCE})) as site:
        node = await attesting_node(site)
        node.log = [ima_entry(b"boot_aggregate", bytes(32)), ima_entry(b"/usr/bin/agent", GOOD)]
        await node.ask()
        await node.push()
        node.tick()
        yield node


async def refused(node: AttestingNode, message: Push) -> Reason:
    with pytest.raises(Fault) as caught:
        await node.send(message)
    return caught.value.reason


def boot_another(node: AttestingNode) -> None:
    node.tpm.events = healthy_boot(firmware="another")
    node.whole = True


def run_another(node: AttestingNode) -> None:
    node.log = [*node.log, ima_entry(b"/tmp/implant", b"\x66" * 32)]


def roll_back(node: AttestingNode) -> None:
    clock, reset, restart, safe = node.tpm.clock
    node.tpm.clock = (clock - 120_000, reset, restart, safe)


FAILURES = {
    Reason.REFERENCE_MISMATCH: boot_another,
    Reason.MEASUREMENT_UNKNOWN: run_another,
    Reason.CLOCK_REGRESSED: roll_back,
}


@pytest.mark.parametrize("reason", FAILURES)
async def test_a_failure_stays_until_it_is_cleared(node: AttestingNode, reason: Reason) -> None:
    site, well = node.site, (node.tpm.events, node.log, node.tpm.clock)
    FAILURES[reason](node)
    assert await refused(node, node.message()) is reason
    site.clock.advance(3600)
    node.tpm.events, node.log, node.tpm.clock = well
    node.tick()
    for _process in range(2):
        entry = await site.authority.inventory.get(node.caller.id)
        assert (entry.latched, entry.posture.verdict, entry.attested_until) == (reason.code, Verdict.FAILED, 0.0)
        assert await refused(node, node.message()) is Reason.ATTESTATION_LATCHED
        assert await refused(node, Push()) is Reason.ATTESTATION_LATCHED
        with pytest.raises(Fault) as caught:
            await node.renew()
        assert caught.value.reason is Reason.ATTESTATION_LATCHED
        site.service = site.another_process()
    assert "attestation.failed" in site.audit.kinds()
    await site.authority.inventory.clear_failure(node.caller.id, "ada")
    await node.ask()
    await node.push()
    assert (await site.authority.inventory.get(node.caller.id)).posture.verdict is Verdict.PASSED


async def test_gateways_hear_of_the_failure(node: AttestingNode) -> None:
    numbers = await node.site.authority.feed.numbers()
    boot_another(node)
    await refused(node, node.message())
    async with node.site.authority.feed.follow(numbers) as changes:
        change = await anext(aiter(changes))
    assert isinstance(change, PostureChanged)
    assert (change.posture.verdict, change.attested_until) == (Verdict.FAILED, 0.0)
    assert change.number == numbers.postures + 1


def by_another_key(node: AttestingNode) -> Push:
    good = node.message()
    stranger = ec.generate_private_key(ec.SECP256R1())
    return replace(good, quote_signature=signature(stranger, good.quote_attest))


def of_another_boot_by_another_key(node: AttestingNode) -> Push:
    boot_another(node)
    return by_another_key(node)


def rubbish(node: AttestingNode) -> Push:
    return replace(node.message(), quote_attest=b"\x00" * 40)


def over_an_old_nonce(node: AttestingNode) -> Push:
    boot_another(node)
    assert node.next is not None
    return node.message(quote=node.quote(node.qualifying(b"\x07" * 32), node.next.pcrs))


def other_values(node: AttestingNode) -> Push:
    good = node.message()
    return replace(good, pcr_values=(bytes(32), *good.pcr_values[1:]))


def other_pcrs(node: AttestingNode) -> Push:
    assert node.next is not None
    return node.message(quote=node.quote(node.qualifying(node.next.nonce), PCRS))


def a_log_without_its_end(node: AttestingNode) -> Push:
    node.log = [*node.log, ima_entry(b"/usr/bin/agent", GOOD)]
    return node.message(measurements=b"")


def a_garbled_log(node: AttestingNode) -> Push:
    return node.message(measurements=b"\xff" * 60)


NOT_THE_NODE = [
    by_another_key,
    of_another_boot_by_another_key,
    rubbish,
    over_an_old_nonce,
    other_values,
    other_pcrs,
    a_log_without_its_end,
    a_garbled_log,
]


@pytest.mark.parametrize("bend", NOT_THE_NODE)
async def test_what_proves_nothing_of_the_node_fails_nobody(
    node: AttestingNode, bend: Callable[[AttestingNode], Push]
) -> None:
    before = await node.site.authority.inventory.get(node.caller.id)
    well = (node.tpm.events, node.log)
    with pytest.raises(Fault):
        await node.send(bend(node))
    assert await node.site.authority.inventory.get(node.caller.id) == before
    node.tpm.events, node.log = well
    await node.push()


async def test_a_body_that_does_not_parse_fails_nobody(node: AttestingNode) -> None:
    from tests.support.node import HERE

    before = await node.site.authority.inventory.get(node.caller.id)
    for raw in (
        b"",
        b"{}",
        b"[" * 5000,
        node.message().encode()[:-1],
        node.message().encode().replace(b"{", b'{"x":1,'),
    ):
        with pytest.raises(Fault) as caught:
            await node.site.service.attesting.push(raw, node.caller, HERE)
        assert caught.value.reason is Reason.EVIDENCE_MALFORMED
    assert await node.site.authority.inventory.get(node.caller.id) == before

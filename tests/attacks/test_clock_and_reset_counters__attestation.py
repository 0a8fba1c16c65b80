"""Row "clock and reset counters", in continuous re-attestation: resetCount, restartCount and clock are compared as one
tuple with what is on record, be it from a round or from enrolment. A copy of a virtual TPM, rolled back or run beside
the original, shows within one round."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.verdict import CLOCK_LOSS_MS
from tests.support.attesting import AttestingNode, attesting_node
from tests.support.installation import installation

AT = (10_000_000, 7, 2, 1)  # clock, resetCount, restartCount, safe


@pytest.fixture(name="node", params=["after a round", "after enrolment"])
async def _node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AttestingNode]:
    async with installation(tmp_path / "site") as site:
        node = await attesting_node(site)
        node.tpm.clock = AT
        await node.renew()
        await node.ask()
        if request.param == "after a round":
            await node.push()
        yield node


@pytest.mark.parametrize(
    "clock",
    [
        AT,
        (10_000_001, 7, 2, 0),
        (10_000_001, 7, 3, 1),
        (10_000_001, 8, 0, 1),
        (10_000_000 - CLOCK_LOSS_MS, 8, 0, 0),
    ],
)
async def test_a_tpm_that_went_on_passes(node: AttestingNode, clock: tuple[int, int, int, int]) -> None:
    node.tpm.clock = clock
    await node.push()


@pytest.mark.parametrize(
    "clock",
    [
        (20_000_000, 6, 2, 1),
        (20_000_000, 6, 9, 1),
        (20_000_000, 7, 1, 1),
        (9_999_999, 7, 2, 1),
        (9_999_999, 7, 2, 0),
        (9_999_999, 8, 0, 1),
        (10_000_000 - CLOCK_LOSS_MS - 1, 8, 0, 0),
        (0, 0, 0, 1),
    ],
)
async def test_a_tpm_that_went_back_fails_for_good(node: AttestingNode, clock: tuple[int, int, int, int]) -> None:
    node.tpm.clock = clock
    with pytest.raises(Fault) as caught:
        await node.push()
    assert caught.value.reason is Reason.CLOCK_REGRESSED
    entry = await node.site.authority.inventory.get(node.caller.id)
    assert entry.latched == Reason.CLOCK_REGRESSED.code


async def test_a_copy_beside_the_original_shows(node: AttestingNode) -> None:
    """Both hold the node's keys. Whichever is behind the other fails the node."""
    original = node.tpm.clock
    node.tick(60)
    await node.push()
    node.tpm.clock = original
    with pytest.raises(Fault) as caught:
        await node.push()
    assert caught.value.reason is Reason.CLOCK_REGRESSED
    assert (await node.site.authority.inventory.get(node.caller.id)).latched


async def test_what_a_round_showed_binds_a_renewal(node: AttestingNode) -> None:
    node.tick(60)
    await node.push()
    node.tpm.clock = AT
    with pytest.raises(Fault) as caught:
        await node.renew()
    assert caught.value.reason is Reason.CLOCK_REGRESSED

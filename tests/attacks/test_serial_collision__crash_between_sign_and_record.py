"""attacks.md, "serial collision, crash between sign and record" (Boulder's practice): a forced duplicate never leaves,
and killing the authority at any step leaves no certificate that is not on record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.ledger import RESERVATION_SECONDS, Step
from pki.revocation_reason import RevocationReason
from tests.support.issuing_process import STEPS
from tests.support.site import ACTOR, open_site

pytestmark = pytest.mark.every_storage
ROOT = Path(__file__).parents[2]


async def test_a_serial_that_collides_is_drawn_again(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_site(tmp_path, storage) as site:
        node, other = await site.expect("a"), await site.expect("b")
        first = await site.issue(node)
        taken, free = int(first.serial, 16), int(first.serial, 16) ^ 1
        draws = iter([taken, taken, free])
        monkeypatch.setattr("pki.issue.random_serial", lambda: next(draws))
        second = await site.issue(other)
        assert int(second.serial, 16) == free
        assert (await site.authority.ledger.certificate(first.serial)).identity == node


async def test_a_generator_that_is_stuck_issues_nothing(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_site(tmp_path, storage) as site:
        node, other = await site.expect("a"), await site.expect("b")
        first = await site.issue(node)
        monkeypatch.setattr("pki.issue.random_serial", lambda: int(first.serial, 16))
        with pytest.raises(Fault) as caught:
            await site.issue(other)
        assert caught.value.reason is Reason.SERIAL_CONFLICT
        row = await site.authority.ledger.certificate(first.serial)
        assert (row.identity, row.certificate) == (node, first.chain[0])


@pytest.mark.parametrize("step", list(STEPS))
async def test_kill_9_at_every_step_leaves_no_unrecorded_certificate(tmp_path: Path, storage: str, step: str) -> None:
    async with open_site(tmp_path, storage) as site:
        node = await site.expect("a")
    signed = _die(tmp_path, storage, step)
    async with open_site(tmp_path, storage) as site:
        rows = {row.serial: row for row in await site.authority.ledger.page(node)}
        for certificate in signed:
            row = rows[format(certificate.serial_number, "x")]
            assert row.tbs == certificate.tbs_certificate_bytes
        expected = {"before reserving": [], "recorded, not answered": [Step.ISSUED]}
        assert [row.step for row in rows.values()] == expected.get(step, [Step.RESERVED])

        # What may have been signed can be revoked, is given up in time, and stands in nobody's way.
        site.clock.advance(RESERVATION_SECONDS + 1)
        await site.authority.ledger.tidy()
        issued = await site.issue(node)
        made = await site.authority.revocations.revoke_identity(node, RevocationReason.KEY_COMPROMISE, ACTOR)
        living = {issued.serial, *(row.serial for row in rows.values())}
        assert {one.serial for one in made[1:]} == living


def _die(folder: Path, storage: str, step: str) -> list[x509.Certificate]:
    """Have another process issue for the node `a` and die at `step`; what it had signed by then."""
    command = [sys.executable, "-m", "tests.support.issuing_process", "die", str(folder), storage, "a", step]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    return [x509.load_der_x509_certificate(bytes.fromhex(line)) for line in done.stdout.split()]

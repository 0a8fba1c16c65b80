"""The certificate while the agent runs: when it is renewed, and what follows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agent import certificate as module
from agent.certificate import LOOK_EVERY, Certificate, Renewal, due
from agent.enrol import enrol
from agent.settings import AgentSettings
from agent.store import Identity, NodeStore
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock
from tests.support.agent import EagerClock, quiet, settings_for
from tests.support.authority import SmallAuthority as Enrolling
from tests.support.certificates import SmallAuthority
from tests.support.swtpm import EmulatedTpm, maker, swtpm
from tests.support.tunnels import identity_of

__all__ = ["maker", "swtpm"]  # fixtures


class Renewing:
    """A node whose renewals the test answers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.authority = SmallAuthority(folder)
        self.store = NodeStore(folder / "node")
        self.first = identity_of(self.authority, "one", now=self.clock.now())
        self.store.save(self.first)
        self.changes = 0
        self.asked = 0
        self.fault: Fault | None = None
        self.answer = self.first
        settings = AgentSettings(directory=folder / "node", attestation="none")
        self.certificate = Certificate(settings, self.store, self.first, None, self._changed)
        self.renewal = Renewal(self.certificate, self.clock, lambda: 0.5)
        monkeypatch.setattr(module, "renew", self._renew)

    def _changed(self) -> None:
        self.changes += 1

    async def _renew(self, *_: object) -> Identity:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        self.store.save(self.answer)
        return self.answer

    async def pass_by(self, seconds: float) -> None:
        """Time goes by, a look at a time."""
        for _ in range(int(seconds / LOOK_EVERY)):
            self.clock.advance(LOOK_EVERY)
            for _ in range(5):
                await asyncio.sleep(0)


@pytest.fixture
def renewing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Renewing:
    return Renewing(tmp_path, monkeypatch)


def test_it_is_due_within_a_stretch_behind_the_named_moment(tmp_path: Path) -> None:
    identity = identity_of(SmallAuthority(tmp_path), now=0.0, life=1000)
    issued = replace(identity.issued, renew_after=500, not_after=1000)
    moments = [due(replace(identity, issued=issued), share) for share in (0.0, 0.5, 0.999)]
    assert moments[0] == 500
    assert 500 < moments[1] < moments[2] < 600
    late = replace(identity, issued=replace(issued, renew_after=2000))
    assert due(late, 0.9) == 2000


async def test_it_is_renewed_once_when_it_is_due(renewing: Renewing) -> None:
    running = asyncio.create_task(renewing.renewal.run())
    issued = renewing.first.issued
    await renewing.pass_by(issued.renew_after - renewing.clock.now() - LOOK_EVERY)
    assert renewing.asked == 0
    later = issued.not_after + 3600
    renewing.answer = identity_of(renewing.authority, "two", now=later)
    await renewing.pass_by(900)
    assert (renewing.asked, renewing.changes) == (1, 1)
    assert renewing.certificate.identity is renewing.answer
    running.cancel()


async def test_what_fails_is_told_and_tried_again(renewing: Renewing) -> None:
    running = asyncio.create_task(renewing.renewal.run())
    renewing.fault = Fault(Reason.ATTESTATION_LATCHED)
    await renewing.pass_by(renewing.first.issued.not_after - renewing.clock.now())
    assert renewing.renewal.fault is renewing.fault
    assert 10 < renewing.asked < 120
    assert renewing.changes == 0
    renewing.fault, renewing.answer = None, identity_of(renewing.authority, "two", now=renewing.clock.now() + 3600)
    await renewing.pass_by(120)
    assert renewing.renewal.fault is None
    assert renewing.changes == 1
    running.cancel()


async def test_what_another_program_renewed_is_taken_up(renewing: Renewing) -> None:
    running = asyncio.create_task(renewing.renewal.run())
    await renewing.pass_by(60)
    other = identity_of(renewing.authority, "two", now=renewing.clock.now())
    renewing.store.save(other)
    await renewing.pass_by(30)
    assert renewing.certificate.identity.issued == other.issued
    assert (renewing.asked, renewing.changes) == (0, 1)
    running.cancel()


async def test_a_wall_clock_that_jumps_makes_it_due(renewing: Renewing) -> None:
    running = asyncio.create_task(renewing.renewal.run())
    await renewing.pass_by(30)
    renewing.clock.set_wall(renewing.first.issued.not_after - 1.0)
    await renewing.pass_by(30)
    assert renewing.asked
    running.cancel()


async def test_dials_prove_the_newest_certificate(renewing: Renewing) -> None:
    first = await renewing.certificate.context()
    assert await renewing.certificate.context() is first
    calls = await asyncio.to_thread(renewing.certificate.for_calls)
    renewing.certificate.use(renewing.first)
    assert await renewing.certificate.context() is first
    renewing.certificate.use(identity_of(renewing.authority, "two"))
    assert await renewing.certificate.context() is not first
    assert await asyncio.to_thread(renewing.certificate.for_calls) is not calls


async def test_a_renewal_uses_the_tpm_that_the_agent_has_open(tmp_path: Path, swtpm: EmulatedTpm) -> None:
    """Not every TPM can be opened twice: this one, without a resource manager, cannot."""
    authority = Enrolling(tmp_path)
    with authority.serving() as address:
        settings = settings_for(tmp_path, address, swtpm)
        store = NodeStore(settings.directory)
        await enrol(settings, authority.token, store, EagerClock(), quiet)
    with authority.serving(mutual=True) as address:
        settings = settings_for(tmp_path, address, swtpm)
        changed = asyncio.Event()
        with await asyncio.to_thread(Tpm, settings.tcti) as tpm:
            certificate = Certificate(settings, store, store.identity(), tpm, changed.set)
            context = await certificate.context()
            await certificate.renew(EagerClock(store.identity().issued.renew_after))
            assert changed.is_set()
            assert await certificate.context() is not context
    assert [path for path, _ in authority.requests][-2:] == ["/v1/renew/begin", "/v1/renew/complete"]

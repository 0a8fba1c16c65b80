"""The node's rounds against the real authority, over real listeners, with an emulated TPM."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.attest import AttestationSettings, Attester
from agent.channel import Channel
from agent.enrol import enrol
from agent.renew import renew
from agent.settings import AgentSettings
from agent.store import NodeStore
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.reattestation import PATH, Push
from pki.enrol.judgement import Trust
from pki.tpm.endorsement import MakerTrust
from pki.tpm.ima import RuntimeReference
from pki.tpm.reference import ReferenceValues
from tests.support.agent import EagerClock, quiet
from tests.support.attesting import ima_entry
from tests.support.installation import Installation, installation
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

BOOT = ima_entry(b"boot_aggregate", bytes(32))
GOOD = hashlib.sha256(b"/usr/bin/agent").digest()


class Rounds:
    """An enrolled node, its attester, and what went over the wire."""

    def __init__(self, site: Installation, settings: AgentSettings, log: Path, tpm: Tpm) -> None:
        self.site, self.settings, self.log = site, settings, log
        self.store, self.clock = NodeStore(settings.directory), EagerClock()
        self.tpm = tpm
        self.attester = self.restarted()
        self.lose = 0
        self.overtakes = False  # a round ends between the two messages of a renewal
        self.sent: list[Push] = []

    def restarted(self) -> Attester:
        self.attester = Attester(
            self.settings, AttestationSettings(self.log), self.store, self.tpm, self.clock, random.random
        )
        return self.attester

    def push_by_another_process(self) -> None:
        """A round over a connection to the TPM of its own: an emulator without resource manager lends objects once."""
        with Tpm(self.settings.tcti) as tpm:
            log = AttestationSettings(self.log)
            Attester(self.settings, log, self.store, tpm, self.clock, random.random)._push()

    def post(self, channel: Channel, path: str, body: bytes) -> bytes:
        self.sent.append(Push.parse(body))
        answer = _POST(channel, path, body)
        if self.lose:
            self.lose -= 1
            raise Fault(Reason.SERVER_UNREACHABLE, "the answer is lost")
        return answer

    def measure(self, *entries: bytes) -> None:
        """The kernel measures: the log grows, then PCR 10."""
        with self.log.open("ab") as file:
            file.writelines(entries)
        for entry in entries:
            name_size = int.from_bytes(entry[24:28], "little")
            self.extend(hashlib.sha256(entry[32 + name_size :]).digest())

    def extend(self, digest: bytes, pcr: int = 10) -> None:
        from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
        from tpm2_pytss.types import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

        def work() -> None:
            values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))])
            self.tpm._esapi.pcr_extend(ESYS_TR(pcr), values)

        self.tpm._command(work)


_POST = Channel.post


def _through(rounds: Rounds) -> Callable[[Channel, str, bytes], bytes]:
    def post(channel: Channel, path: str, body: bytes) -> bytes:
        if path == "/v1/renew/complete" and rounds.overtakes:
            rounds.overtakes = False
            rounds.push_by_another_process()
        return rounds.post(channel, path, body) if path == PATH else _POST(channel, path, body)

    return post


def runtime_trust(maker: TpmMaker) -> Trust:
    runtime = RuntimeReference(frozenset({GOOD}))
    return Trust(MakerTrust(virtual=(maker.root,)), {"default": ReferenceValues("sha256", {}, runtime)})


@pytest.fixture(name="rounds", params=["firmware", "runtime"])
async def _rounds(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    swtpm: EmulatedTpm,
    maker: TpmMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Rounds]:
    trust = runtime_trust(maker) if request.param == "runtime" else Trust(MakerTrust(virtual=(maker.root,)))
    async with installation(tmp_path / "site", trust=trust) as site:
        settings = AgentSettings(tmp_path / "node", tcti=swtpm.tcti, event_log=swtpm.event_log, timeout=10)
        async with site.enrolling() as authority:
            settings = replace(settings, authority=authority)
            await enrol(settings, await site.token(), NodeStore(settings.directory), EagerClock(), quiet)
        with Tpm(swtpm.tcti) as tpm:
            async with site.serving() as api:
                rounds = Rounds(site, replace(settings, renewal=api), tmp_path / "ima", tpm)
                monkeypatch.setattr(Channel, "post", _through(rounds))
                await asyncio.to_thread(rounds.measure, BOOT, ima_entry(b"/usr/bin/agent", GOOD))
                yield rounds


async def entry_of(rounds: Rounds) -> tuple[float, str]:
    identity = SpiffeId.parse(rounds.store.identity().issued.spiffe_id)
    entry = await rounds.site.authority.inventory.get(identity)
    return entry.attested_until, entry.latched


async def test_the_first_push_asks_and_every_other_is_one_message(rounds: Rounds) -> None:
    for _ in range(3):
        answer = await rounds.attester.push()
        assert (await entry_of(rounds))[0] == pytest.approx(answer.attested_until, abs=1)
    assert [message.asks for message in rounds.sent] == [True, False, False, False]
    assert [bool(message.event_log) for message in rounds.sent] == [False, True, False, False]
    assert rounds.attester.attested_until == answer.attested_until


async def test_each_entry_of_the_runtime_log_is_sent_once(rounds: Rounds) -> None:
    measured = (await rounds.attester.push()).measured
    await asyncio.to_thread(rounds.measure, ima_entry(b"/opt/agent", GOOD, sig=b"s" * 72))
    await rounds.attester.push()
    await rounds.attester.push()
    counts = [message.measured_from for message in rounds.sent]
    sizes = [len(message.measurements) for message in rounds.sent]
    whole = rounds.log.read_bytes()
    if measured:
        assert counts == [0, 0, 2, 3]
        assert sum(sizes) == len(whole)
    else:
        assert counts == sizes == [0] * 4


async def test_what_the_kernel_added_after_the_quote_waits_for_the_next(rounds: Rounds) -> None:
    with rounds.log.open("ab") as file:
        file.write(ima_entry(b"/tmp/later", bytes(32)))
    await rounds.attester.push()
    assert (await entry_of(rounds))[1] == ""


async def test_a_lost_answer_costs_one_message(rounds: Rounds) -> None:
    await rounds.attester.push()
    rounds.lose = 1
    with pytest.raises(Fault):
        await rounds.attester.push()
    await rounds.attester.push()
    await rounds.attester.push()
    assert [message.asks for message in rounds.sent] == [True, False, False, False, False]


async def test_a_restarted_agent_asks_and_sends_its_logs_whole(rounds: Rounds) -> None:
    await rounds.attester.push()
    rounds.restarted()
    await rounds.attester.push()
    assert [message.asks for message in rounds.sent] == [True, False, True, False]
    assert rounds.sent[-1].event_log
    assert rounds.sent[-1].measured_from == 0


async def test_an_authority_that_forgot_the_nonce_is_asked_for_another(rounds: Rounds) -> None:
    await rounds.attester.push()
    other = Attester(
        rounds.settings, AttestationSettings(rounds.log), rounds.store, rounds.tpm, rounds.clock, random.random
    )
    await other.push()
    await other.push()
    await rounds.attester.push()
    assert [message.asks for message in rounds.sent][-3:] == [False, True, False]


async def test_a_renewal_in_between_disturbs_nothing(rounds: Rounds) -> None:
    await rounds.attester.push()
    await renew(rounds.settings, rounds.store, rounds.clock, quiet)
    await rounds.attester.push()
    assert (await entry_of(rounds))[1] == ""


async def test_a_renewal_that_a_round_overtakes_fails_nobody(rounds: Rounds) -> None:
    """Its evidence was made before the round's: refused, for counters never go back, and begun again."""
    rounds.overtakes = True
    with pytest.raises(Fault) as caught:
        await renew(rounds.settings, rounds.store, rounds.clock, quiet)
    assert caught.value.reason is Reason.CLOCK_REGRESSED
    assert (await entry_of(rounds))[1] == ""
    await renew(rounds.settings, rounds.store, rounds.clock, quiet)
    await asyncio.to_thread(rounds.push_by_another_process)


async def test_a_nonce_that_is_too_old_is_not_used(rounds: Rounds) -> None:
    await rounds.attester.push()
    rounds.clock.advance(121)
    await rounds.attester.push()
    assert [message.asks for message in rounds.sent] == [True, False, True, False]


async def test_it_runs_ahead_of_the_interval_and_slower_after_refusals(rounds: Rounds) -> None:
    waits = [await rounds.attester._round() for _ in range(3)]
    assert all(45 <= wait <= 60 for wait in waits)
    rounds.settings = replace(rounds.settings, renewal=replace(rounds.settings.renewal, port=1))  # type: ignore[type-var]
    rounds.restarted()
    waits = [await rounds.attester._round() for _ in range(9)]
    assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits[:6]))
    assert all(30 <= wait <= 60 for wait in waits[6:])


async def test_it_runs_until_it_is_cancelled(rounds: Rounds) -> None:
    running = asyncio.create_task(rounds.attester.run())
    while len(rounds.sent) < 5:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_what_may_not_run_fails_the_node(rounds: Rounds) -> None:
    measured = (await rounds.attester.push()).measured
    await asyncio.to_thread(rounds.measure, ima_entry(b"/tmp/x", hashlib.sha256(b"x").digest()))
    if measured:
        with pytest.raises(Fault) as caught:
            await rounds.attester.push()
        assert caught.value.reason is Reason.MEASUREMENT_UNKNOWN
        assert (await entry_of(rounds)) == (0.0, Reason.MEASUREMENT_UNKNOWN.code)
    else:
        await rounds.attester.push()


async def test_a_log_that_never_comes_to_the_quote_is_not_sent(rounds: Rounds) -> None:
    measured = (await rounds.attester.push()).measured
    await asyncio.to_thread(rounds.extend, bytes(32))
    if measured:
        sent = len(rounds.sent)
        with pytest.raises(Fault) as caught:
            await rounds.attester.push()
        assert caught.value.reason is Reason.MEASUREMENTS_MISMATCH
        assert all(message.asks for message in rounds.sent[sent:])
    else:
        await rounds.attester.push()

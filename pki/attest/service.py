"""Continuous re-attestation, the authority's side: one message a round, which proves and asks at once.

docs/protocol.md tells it field by field, `pki.tpm.verdict` how a quote is judged, `pki.rounds` what is on record.

Laws held here:
- a quote holds from its nonce's issue on, never from its arrival: a delayed one proves the past alone;
- only what the node's own AK signed over a nonce of ours, for this node, certificate and authority, can fail the node;
  everything else is refused and changes nothing;
- the nonce before stays good until the next one is used: the same message gets the same answer, and moves nothing;
- a passed quote moves a deadline; only a change of verdict changes facts.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from foundation.wire.measurements import RUNTIME_PCR
from foundation.wire.reattestation import Next, Push, qualifying_data
from pki.attest.metrics import AttestationMetrics
from pki.authority import Authority
from pki.enrol.judgement import Trust, check_class, tpm_counters
from pki.enrol.origin import Origin, Refusals
from pki.enrol.parts import Parts
from pki.enrol.rate import RateTable
from pki.enrol.sessions import new_nonce
from pki.entries import Attested, Counters, Entry, check_enrollable
from pki.rounds import Round
from pki.tpm import verdict
from pki.tpm.attest import Attest
from pki.tpm.ima import Aggregate
from pki.tpm.public import Public
from pki.tpm.reference import ReferenceValues

# What only a node comes to that booted or runs something else, or whose TPM was rolled back. The rest may be a PCR that
# moved between reading and quoting, or settings that changed: refused, and the node may try again, until silence ends
# trust in it.
LATCHING = frozenset(
    {
        Reason.ATTEST_SIGNER,
        Reason.EVENT_LOG_MISMATCH,
        Reason.REFERENCE_MISMATCH,
        Reason.MEASUREMENT_UNKNOWN,
        Reason.CLOCK_REGRESSED,
    }
)
# What a node comes to every minute while nothing new is wrong: counted, and answered, but not put on record each time.
# A failure is on record since it was latched.
_ROUTINE = frozenset(
    {
        Reason.ATTESTATION_LATCHED,
        Reason.ATTEST_NONCE,
        Reason.EVIDENCE_INCOMPLETE,
        Reason.MEASUREMENTS_MISMATCH,
        Reason.QUOTE_SELECTION,
    }
)
_KINDS = (Kind.NODE, Kind.GATEWAY, Kind.SERVICE)
_ATTEMPTS = 4  # the entry or the round changes between reading and writing only when something else is done to the node
_ROOM = 3  # pushes may come this many times as often as they are due
_APART_BYTES = 64 * 1024  # a log of this size takes milliseconds to replay
_KEYS = 16_384


@dataclass(frozen=True, slots=True)
class _Standing:
    """What a message is judged by: who sent it, and what is on record of it now."""

    caller: Caller
    entry: Entry
    round: Round
    reference: ReferenceValues | None
    pcrs: PcrSelection


class Attesting:
    """Answers PUSH with NEXT."""

    def __init__(self, parts: Parts, metrics: AttestationMetrics) -> None:
        self._authority: Authority = parts.authority
        self._trust: Trust = parts.trust
        self._settings = parts.settings
        self._refusals: Refusals = parts.refusals
        self._clock: Clock = parts.clock
        self._metrics = metrics
        self._root_sha256 = parts.authority.root_sha256
        rate, interval = parts.settings.rate, parts.settings.attestation.interval
        self._rate = RateTable(rate.burst, max(rate.per_minute, int(_ROOM * 60 / interval)))

    async def push(self, raw: bytes, caller: Caller, origin: Origin) -> bytes:
        """The raw NEXT that answers the raw PUSH. Raises `Fault`."""
        if not self._rate.take(str(caller.id), self._clock.monotonic()):
            raise Fault(Reason.ENROLMENT_RATE_LIMITED)
        try:
            answer = await self._answer(Push.parse(raw), caller)
        except Fault as fault:
            self._metrics.refused(fault.reason)
            if fault.reason in _ROUTINE:
                raise
            raise await self._refusals.outward(fault, "attest.refused", origin, str(caller.id), known=True) from fault
        return answer.encode()

    async def _answer(self, message: Push, caller: Caller) -> Next:
        for _attempt in range(_ATTEMPTS):
            standing = await self._standing(caller)
            answer = await (self._hand_out(standing) if message.asks else self._judge(message, standing))
            if answer is not None:
                return answer
        raise Fault(Reason.CONFLICT, "the node's record keeps changing", field="identity")

    async def _standing(self, caller: Caller) -> _Standing:
        """Who sends, when it may: the holder of its identity's newest certificate, with a TPM on record and no failure.
        Raises `Fault`."""
        if caller.via != "certificate" or caller.id.kind not in _KINDS:
            raise Fault(Reason.KIND_NOT_ALLOWED, "nodes, gateways and services attest, each with its own certificate")
        entry, state = await self._authority.rounds.read(caller.id)
        if caller.serial != entry.current_serial:
            raise Fault(Reason.CERTIFICATE_SUPERSEDED, internal=f"newest is {entry.current_serial}")
        check_enrollable(entry)
        if not entry.ak_public:
            raise Fault(Reason.ATTESTATION_REQUIRED, "no TPM is on record for this identity", field="identity")
        check_class(entry.posture.attestation, self._settings)
        reference = self._trust.reference_for(entry)
        return _Standing(caller, entry, state, reference, _pcrs(self._settings.pcrs, reference))

    async def _hand_out(self, standing: _Standing) -> Next:
        nonce = new_nonce()
        await self._authority.rounds.hand_out(standing.entry.id, nonce)
        self._metrics.asked()
        return self._next(standing, nonce, 0.0)

    async def _judge(self, message: Push, standing: _Standing) -> Next | None:
        """The answer; None when what is on record has changed meanwhile."""
        entry, state = standing.entry, standing.round
        ak = _key(entry.ak_public)
        quote, which = verdict.authenticate(ak, message, self._expected(standing))
        is_late = which == 1
        proven = await self._verify(ak, quote, message, standing, is_late=is_late)
        if is_late:
            return self._next(standing, state.nonce, state.used_issued_at)
        now = self._clock.now()
        after = _after(state, proven, new_nonce(), now)
        until = state.issued_at + self._settings.attestation.holds
        if not await self._authority.rounds.move_on(
            entry, state, after, _attested(entry, proven, until), str(entry.id)
        ):
            return None
        self._metrics.passed(now - state.issued_at)
        return self._next(standing, after.nonce, after.used_issued_at)

    async def _verify(
        self, ak: Public, quote: Attest, message: Push, standing: _Standing, *, is_late: bool
    ) -> verdict.Again:
        """What the quote proves. A failure of the node stays on record before it is raised."""
        judge = functools.partial(
            verdict.verify_again,
            ak,
            quote,
            message,
            standing.pcrs,
            _accepted(standing.entry, standing.round),
            standing.reference,
            reference_required=self._settings.production,
        )
        try:
            long = len(message.event_log) + len(message.measurements) > _APART_BYTES
            return await asyncio.to_thread(judge) if long else judge()
        except Fault as fault:
            # Overtaken by a later quote, a late one tells earlier counters: of that, nothing follows.
            overtaken = is_late and fault.reason is Reason.CLOCK_REGRESSED
            if fault.reason in LATCHING and not overtaken:
                identity = standing.entry.id
                await self._authority.inventory.latch_failure(identity, fault.reason, str(identity))
            raise

    def _expected(self, standing: _Standing) -> tuple[bytes, ...]:
        """What a quote may be over: the nonce that is out, and behind it the last one used, where there are such."""
        state, caller, root = standing.round, standing.caller, self._root_sha256
        nonces = (nonce for nonce in (state.nonce, state.used_nonce) if nonce)
        return tuple(qualifying_data(str(caller.id), caller.serial, root, nonce) for nonce in nonces)

    def _next(self, standing: _Standing, nonce: bytes, since: float) -> Next:
        reference, rules = standing.reference, self._settings.attestation
        return Next(
            nonce=nonce,
            pcrs=standing.pcrs,
            interval=int(rules.interval),
            attested_until=int(since + rules.holds) if since else 0,
            measured=reference is not None and reference.runtime is not None,
        )


def _pcrs(firmware: PcrSelection, reference: ReferenceValues | None) -> PcrSelection:
    """What a node of these reference values quotes: the firmware's PCRs, and the kernel's where its log is judged."""
    if reference is None or reference.runtime is None:
        return firmware
    return PcrSelection(firmware.bank, tuple(sorted({*firmware.indices, RUNTIME_PCR})))


def _accepted(entry: Entry, state: Round) -> verdict.Accepted:
    runtime = Aggregate(state.measured, state.measured_pcr) if state.measured else None
    return verdict.Accepted(tpm_counters(entry.counters), state.boot, runtime)


def _attested(entry: Entry, proven: verdict.Again, until: float) -> Attested:
    found = proven.counters
    counters = Counters(found.reset_count, found.restart_count, found.clock)
    return Attested(entry.posture.attestation, until, entry.ek_sha256, entry.ak_public, entry.ak_name, counters)


def _after(state: Round, proven: verdict.Again, nonce: bytes, now: float) -> Round:
    runtime = proven.runtime or Aggregate(0, b"")
    return Round(nonce, now, state.nonce, state.issued_at, proven.boot, runtime.count, runtime.value)


@functools.lru_cache(_KEYS)
def _key(ak_public: bytes) -> Public:
    """The AK as enrolment accepted it; the point of its curve is found once."""
    return Public.parse(ak_public, "identity.ak_public")

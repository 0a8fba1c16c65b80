"""The second message, for enrolment and renewal alike: one attempt, proven before it is read, answered for good.

Laws held here:
- a session is taken before anything is compared: whatever the outcome, it was the one attempt;
- the proof is compared, in constant time, before one byte of the evidence is parsed;
- the same bytes get the same answer for the certificate's life, while they are being judged too;
- what the node's own TPM attested wrongly stays on record as its failure until an operator clears it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.wire.enrolment import Complete, Evidence, Issued, proof
from pki.enrol.judgement import Proven
from pki.enrol.origin import Origin
from pki.enrol.parts import Parts
from pki.enrol.sessions import Session
from pki.entries import gateway_names
from pki.issue import Answer, IssuedCertificate, IssueRequest
from pki.profile import ProfileName

# What only a TPM in a wrong state, or one that lies, comes to. The rest may be a garbled message, or a PCR that moved
# between reading and quoting: refused, and the node may try again.
LATCHING = frozenset(
    {
        Reason.ATTEST_MAGIC,
        Reason.ATTEST_TYPE,
        Reason.ATTEST_SIGNATURE,
        Reason.ATTEST_NONCE,
        Reason.ATTEST_NAME,
        Reason.ATTEST_SIGNER,
        Reason.QUOTE_SELECTION,
        Reason.EVENT_LOG_MISMATCH,
        Reason.REFERENCE_MISMATCH,
        Reason.CLOCK_REGRESSED,
    }
)
_RENEW_AT = 0.6  # of the life; each certificate's own moment lies within a tenth around it
_PROFILES = {Kind.NODE: ProfileName.NODE, Kind.GATEWAY: ProfileName.GATEWAY, Kind.SERVICE: ProfileName.SERVICE}


# Judges the evidence of a session whose proof held. Raises `Fault` with the exact reason.
Judge = Callable[[bytes, Session, Evidence], Awaitable[Proven]]


class SecondMessages:
    """Judges second messages and issues."""

    def __init__(self, parts: Parts) -> None:
        self._authority = parts.authority
        self._sessions = parts.sessions
        self._settings = parts.settings
        self._lifetimes = parts.lifetimes
        self._refusals = parts.refusals
        self._clock = parts.clock
        self._under_way: dict[bytes, asyncio.Task[bytes]] = {}

    async def answer(
        self, raw: bytes, purpose: str, origin: Origin, judge: Judge, caller: Caller | None = None
    ) -> bytes:
        """The raw ISSUED that answers the raw COMPLETE. `caller` is who sent it, None at enrolment. Raises `Fault`."""
        key = hashlib.sha256(purpose.encode() + b"\x00" + raw).digest()
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._answer_once(key, raw, purpose, origin, judge, caller))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._under_way.pop(key, None))
        # A sender that gives up does not stop the issuing: its repetition finds the answer.
        return await asyncio.shield(task)

    async def _answer_once(
        self, key: bytes, raw: bytes, purpose: str, origin: Origin, judge: Judge, caller: Caller | None
    ) -> bytes:
        session: Session | None = None
        known = judged = False
        try:
            # 1. The session is over now.
            message = Complete.parse(raw)
            session = await self._sessions.take(message.session, purpose)
            # 2. The same message again gets the same certificate.
            if session is None:
                return await self._recall(key)
            check_holder(session, caller)
            # 3. We are still who began.
            if not hmac.compare_digest(session.server_spki_sha256, origin.server_spki_sha256):
                raise Fault(Reason.SERVER_KEY_CHANGED)
            # 4. The TPM that holds EK and AK said this, all of it.
            check_proof(session, message)
            known = True
            # 5. What it says holds.
            proven = await judge(message.session, session, Evidence.parse(message.evidence))
            judged = True
            # 6. Issue; spending the token, recording the attestation and keeping the answer are the same transaction.
            return await self._issue(key, session, proven)
        except Fault as fault:
            # Evidence that holds, and was overtaken by what was recorded since it was asked for, fails nobody.
            if session is not None and known and not judged:
                await self._latch(fault, session)
            raise await self._refuse(fault, purpose, origin, session, known) from fault

    async def _recall(self, key: bytes) -> bytes:
        kept = await self._authority.ledger.recall(key)
        if kept is None:
            raise Fault(Reason.SESSION_UNKNOWN, field="complete.session")
        return kept

    async def _issue(self, key: bytes, session: Session, proven: Proven) -> bytes:
        kept: list[bytes] = []
        identity = session.identity
        in_rounds = await self._authority.rounds.have_begun(identity)

        def compose(issued: IssuedCertificate) -> bytes:
            kept.append(issued_message(issued, in_rounds=in_rounds))
            return kept[-1]

        names: tuple[str, ...] = ()
        if identity.kind is Kind.GATEWAY:  # from our own record: a request never says its names
            names = gateway_names(await self._authority.inventory.get(identity))
        await self._authority.issue(
            IssueRequest(
                identity=identity,
                profile=_PROFILES[identity.kind],
                spki=proven.spki,
                actor=str(identity),
                attested=proven.attested,
                token=session.token,
                renews=session.renews,
                names=names,
                answer=Answer(key, compose),
            )
        )
        return kept[-1]

    async def _latch(self, fault: Fault, session: Session) -> None:
        own_tpm = bool(session.secret or session.renews)
        if own_tpm and fault.reason in LATCHING:
            await self._authority.inventory.latch_failure(session.identity, fault.reason, str(session.identity))

    async def _refuse(self, fault: Fault, purpose: str, origin: Origin, session: Session | None, known: bool) -> Fault:
        subject = str(session.identity) if session else ""
        proven = known or (session is not None and (session.token is not None or bool(session.renews)))
        return await self._refusals.outward(fault, f"{purpose}.refused", origin, subject, known=proven)

    async def attested_until(self, identity: SpiffeId) -> float:
        """Until when an attestation made now holds, in seconds since the Unix epoch. Who re-attests continuously gets
        no more by a renewal or an enrolment than by a round: else silence would be forgiven by either."""
        life = float(self._lifetimes.profile(_PROFILES[identity.kind]).lifetime)
        holds = self._settings.attested_for
        if await self._authority.rounds.have_begun(identity):
            holds = self._settings.attestation.holds
        return self._clock.now() + min(life, holds or life)


def check_holder(session: Session, caller: Caller | None) -> None:
    """Raises `Fault(SESSION_UNKNOWN)` unless the certificate that began is the one that goes on."""
    began, goes_on = (str(session.identity), session.renews), ("", "")
    if caller is not None:
        goes_on = (str(caller.id), caller.serial)
    if session.renews and began != goes_on:
        raise Fault(Reason.SESSION_UNKNOWN, field="complete.session", internal="begun with another certificate")


def check_proof(session: Session, message: Complete) -> None:
    """Raises `Fault(PROOF_WRONG)` unless the sender activated the credential; where none was made, the proof is
    empty."""
    expected = b""
    if session.secret:
        expected = proof(session.secret, message.session, session.first_message, message.evidence)
    if not hmac.compare_digest(message.proof, expected):
        raise Fault(Reason.PROOF_WRONG, field="complete.proof")


def issued_message(issued: IssuedCertificate, *, in_rounds: bool) -> bytes:
    """The raw ISSUED for a certificate. `in_rounds` says that its holder re-attests continuously: a renewal is then due
    by the certificate's end alone."""
    return Issued(
        spiffe_id=str(issued.identity),
        chain=issued.chain,
        not_after=issued.not_after,
        renew_after=_renew_after(issued, 0 if in_rounds else issued.attested_until),
        attestation=issued.attestation.value,
        attested_until=issued.attested_until,
    ).encode()


def _renew_after(issued: IssuedCertificate, attested_until: int) -> int:
    """Spread by the serial, so that a fleet that enrolled together does not renew together."""
    spread = int(issued.serial[-4:], 16) / 0xFFFF - 0.5
    end = min(issued.not_after, attested_until or issued.not_after)
    return int(issued.not_before + (end - issued.not_before) * (_RENEW_AT + spread * 0.2))

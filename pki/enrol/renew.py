"""Renewal: a node that has a certificate proves, with the AK on record, what it booted and where its next key lives.

The caller is known by its certificate before this begins (mTLS, `foundation.callers`, policy). What this adds:
- only the newest certificate of an identity renews. An older one is refused; when a newer one was seen in use, or
  itself renewed, two holders live: the identity's posture fails until an operator cleared it (a clone alarm);
- the AK is the one that enrolment bound to the EK; a node that has another one enrols anew.
"""

from __future__ import annotations

import hmac

from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.ports import Caller
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin, Challenge, Evidence
from pki.enrol.judgement import (
    Proven,
    asked_of,
    attested_by,
    check_class,
    check_software,
    judge_software,
    judge_tpm,
    keys_on_record,
)
from pki.enrol.origin import Origin
from pki.enrol.parts import Parts
from pki.enrol.rate import RateTable
from pki.enrol.second import SecondMessages
from pki.enrol.sessions import Session, new_nonce
from pki.enrol.use import CertificateUse
from pki.entries import Entry, check_enrollable

_PURPOSE = "renew"
_RENEWABLE = (Kind.NODE, Kind.GATEWAY, Kind.SERVICE)


class NativeRenewal:
    """Answers first and second messages of identities that have a certificate."""

    def __init__(self, parts: Parts, second: SecondMessages, use: CertificateUse) -> None:
        self._authority = parts.authority
        self._trust = parts.trust
        self._sessions = parts.sessions
        self._second = second
        self._settings = parts.settings
        self._refusals = parts.refusals
        self._use = use
        self._clock = parts.clock
        self._rate = RateTable(parts.settings.rate.burst, parts.settings.rate.per_minute)

    async def begin(self, raw: bytes, caller: Caller, origin: Origin) -> bytes:
        """The raw CHALLENGE that answers the raw BEGIN. Raises `Fault`."""
        self._check_rate(caller)
        try:
            return await self._challenge(raw, caller, origin)
        except Fault as fault:
            raise await self._refusals.outward(fault, "renew.refused", origin, str(caller.id), known=True) from fault

    async def complete(self, raw: bytes, caller: Caller, origin: Origin) -> bytes:
        """The raw ISSUED that answers the raw COMPLETE. Raises `Fault`."""
        self._check_rate(caller)
        return await self._second.answer(raw, _PURPOSE, origin, self._judge, caller)

    async def _challenge(self, raw: bytes, caller: Caller, origin: Origin) -> bytes:
        # 1. A certificate of a kind that renews itself, and the newest of its identity.
        if caller.via != "certificate" or caller.id.kind not in _RENEWABLE:
            raise Fault(Reason.KIND_NOT_ALLOWED, "nodes, gateways and services renew, each with its own certificate")
        entry = await self._authority.inventory.get(caller.id)
        await self._check_newest(entry, caller)
        check_enrollable(entry)
        # 2. The message is about this identity, and by the AK on record.
        message = Begin.parse(raw)
        check_begin(message, entry)
        if message.attestation == "none":
            self._check_software(message, entry)
        else:
            check_class(entry.posture.attestation, self._settings)
            keys_on_record(entry, message)
        nonce = new_nonce()
        spki, counters = origin.server_spki_sha256, entry.counters
        session = Session(_PURPOSE, raw, caller.id, spki, nonce, renews=caller.serial, counters=counters)
        return Challenge(
            session=await self._sessions.open(session),
            nonce=nonce,
            expires_in=int(self._sessions.seconds),
            credential_blob=b"",
            encrypted_secret=b"",
            pcrs=self._settings.pcrs,
            server_spki_sha256=origin.server_spki_sha256,
        ).encode()

    async def _check_newest(self, entry: Entry, caller: Caller) -> None:
        """Raises `Fault(CERTIFICATE_SUPERSEDED)`, and `Fault(CLONE_SUSPECTED)` after failing the identity's posture."""
        if hmac.compare_digest(caller.serial, entry.current_serial):
            await self._use.note(caller.serial)
            return
        younger = await self._authority.ledger.issued_after(caller.id, caller.serial)
        if younger < 2 and not await self._use.was_noted(entry.current_serial):
            # The answer to the last renewal may be lost for good. The node sends its second message again, or enrols.
            raise Fault(Reason.CERTIFICATE_SUPERSEDED, internal=f"newest is {entry.current_serial}")
        await self._authority.inventory.latch_failure(caller.id, Reason.CLONE_SUSPECTED, str(caller.id))
        raise Fault(Reason.CLONE_SUSPECTED, internal=f"offered {caller.serial}, newest is {entry.current_serial}")

    def _check_software(self, message: Begin, entry: Entry) -> None:
        # An identity that a TPM is bound to never comes back without one.
        if entry.ek_sha256 or not self._settings.allows_without_tpm(entry.id):
            raise Fault(Reason.ATTESTATION_REQUIRED, field="begin.attestation")
        check_software(message)

    async def _judge(self, session_id: bytes, session: Session, evidence: Evidence) -> Proven:
        message = Begin.parse(session.first_message)
        if message.attestation == "none":
            return judge_software(message, session_id, session, evidence)
        entry = await self._authority.inventory.get(session.identity)
        keys = keys_on_record(entry, message)
        asked = asked_of(session_id, session, self._settings)
        found = judge_tpm(keys, asked, evidence, self._trust.reference_for(entry), self._settings)
        until = await self._second.attested_until(session.identity)
        return attested_by(found, entry.posture.attestation, until, entry.ek_sha256, keys)

    def _check_rate(self, caller: Caller) -> None:
        if not self._rate.take(str(caller.id), self._clock.monotonic()):
            raise Fault(Reason.ENROLMENT_RATE_LIMITED)


def check_begin(message: Begin, entry: Entry) -> None:
    """Raises `Fault(MESSAGE_MALFORMED)` unless `message` is a renewal's for `entry`: what is on record is not said
    again."""
    said = {
        "purpose": message.purpose == _PURPOSE,
        "node": message.node in ("", entry.id.name),
        "token": not message.token,
        "ek_certificate": not message.ek_certificate,
        "ek_chain": not message.ek_chain,
        "ek_public": not message.ek_public,
    }
    wrong = next((name for name, holds in said.items() if not holds), "")
    if wrong:
        raise Fault(
            Reason.MESSAGE_MALFORMED, "a renewal says its purpose, its own name and its keys", field=f"begin.{wrong}"
        )

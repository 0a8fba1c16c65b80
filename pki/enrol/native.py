"""Native enrolment, the authority's side: two messages from a stranger, a certificate for a proven TPM.

docs/protocol.md tells it field by field. Checks stand in the order of the protocol, each with its reason; to a stranger
all of them look the same (`pki.enrol.origin`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin, Challenge, Evidence, Token
from pki.enrol.judgement import (
    Proven,
    asked_of,
    attested_by,
    check_class,
    check_software,
    judge_software,
    judge_tpm,
)
from pki.enrol.origin import Origin
from pki.enrol.parts import Parts
from pki.enrol.rate import RateTable, source_of
from pki.enrol.second import SecondMessages
from pki.enrol.sessions import Session, new_nonce, new_secret
from pki.entries import Entry, check_ek, check_enrollable, gateway_names
from pki.tokens import TokenUse
from pki.tpm import verdict
from pki.tpm.credential import ENTROPY_BYTES, Credential, make_credential
from pki.tpm.issuers import KnownIssuers

_PURPOSE = "enrol"
MAX_IDENTIFIED = 1024


@dataclass(frozen=True, slots=True)
class _Applicant:
    """Who wants to enrol, with the token, bound to this TPM (to the TLS key where there is none)."""

    entry: Entry
    token: TokenUse | None


class NativeEnrolment:
    """Answers first and second messages."""

    def __init__(self, parts: Parts, second: SecondMessages) -> None:
        self._authority = parts.authority
        self._trust = parts.trust
        self._makers = KnownIssuers(parts.trust.makers)
        self._sessions = parts.sessions
        self._second = second
        self._settings = parts.settings
        self._refusals = parts.refusals
        self._clock = parts.clock
        self._rate = RateTable(parts.settings.rate.burst, parts.settings.rate.per_minute)
        self._identified: OrderedDict[bytes, verdict.TpmIdentity] = OrderedDict()

    async def begin(self, raw: bytes, origin: Origin) -> bytes:
        """The raw CHALLENGE that answers the raw BEGIN. Raises `Fault`, as its sender may be told."""
        self._check_rate(origin)
        token: TokenUse | None = None
        try:
            message = Begin.parse(raw)
            if message.purpose != _PURPOSE:
                raise Fault(Reason.MESSAGE_MALFORMED, "expected `enrol`", field="begin.purpose")
            # 1. The token, before anything that costs.
            token = await self._authority.tokens.check(Token.parse(message.token)) if message.token else None
            # 2. TPM and inventory.
            if message.attestation == "none":
                return await self._challenge_software(raw, message, token, origin)
            return await self._challenge_tpm(raw, message, token, origin)
        except Fault as fault:
            subject = str(token.identity) if token else ""
            known = token is not None
            raise await self._refusals.outward(fault, "enrol.refused", origin, subject, known=known) from fault

    async def complete(self, raw: bytes, origin: Origin) -> bytes:
        """The raw ISSUED that answers the raw COMPLETE. Raises `Fault`, as its sender may be told."""
        self._check_rate(origin)
        return await self._second.answer(raw, _PURPOSE, origin, self._judge)

    async def _challenge_tpm(self, raw: bytes, message: Begin, token: TokenUse | None, origin: Origin) -> bytes:
        tpm = self._identify(raw, message)
        applicant = await self._admit(message, token, tpm.ek_sha256)
        secret = new_secret()
        credential = make_credential(tpm.ek, tpm.keys.ak.name, secret, secrets.token_bytes(ENTROPY_BYTES))
        return await self._challenge(raw, applicant, origin, secret, credential)

    async def _challenge_software(self, raw: bytes, message: Begin, token: TokenUse | None, origin: Origin) -> bytes:
        if token is None or not self._settings.allows_without_tpm(token.identity):
            raise Fault(Reason.ATTESTATION_REQUIRED, field="begin.attestation")
        check_software(message)
        applicant = await self._admit(message, token, b"")
        return await self._challenge(raw, applicant, origin, b"", Credential(b"", b""))

    async def _admit(self, message: Begin, token: TokenUse | None, ek_sha256: bytes) -> _Applicant:
        """Who applies, by token or by the inventory's word on this TPM, when they may have a certificate."""
        entry, holder = await self._claimed(token, ek_sha256)
        if message.node and message.node != entry.id.name:
            wrong = Reason.TOKEN_BOUND_ELSEWHERE if token else Reason.EK_TAKEN
            raise Fault(wrong, f"it is for {entry.id.name}", field="begin.node")
        check_enrollable(entry)
        if entry.id.kind is Kind.GATEWAY:  # now, while the token is nobody's yet
            gateway_names(entry)
        check_ek(entry, ek_sha256, holder)
        if token is not None:
            binding = ek_sha256 or hashlib.sha256(message.tls_public).digest()
            token = await self._authority.tokens.bind(token, binding)
        return _Applicant(entry, token)

    async def _claimed(self, token: TokenUse | None, ek_sha256: bytes) -> tuple[Entry, SpiffeId | None]:
        """The entry that the token or else the TPM is for, and whose the TPM is so far."""
        inventory = self._authority.inventory
        if token is not None:
            return await inventory.claim(token.identity, ek_sha256)
        entry = await inventory.find_by_ek(ek_sha256) if ek_sha256 else None
        if entry is None:
            raise Fault(Reason.INVENTORY_UNKNOWN, field="begin.ek_public")
        return entry, entry.id

    async def _challenge(
        self, raw: bytes, applicant: _Applicant, origin: Origin, secret: bytes, credential: Credential
    ) -> bytes:
        nonce = new_nonce()
        identity, spki = applicant.entry.id, origin.server_spki_sha256
        counters = applicant.entry.counters
        begun = Session(_PURPOSE, raw, identity, spki, nonce, secret, applicant.token, counters=counters)
        session = await self._sessions.open(begun)
        return Challenge(
            session=session,
            nonce=nonce,
            expires_in=int(self._sessions.seconds),
            credential_blob=credential.credential_blob,
            encrypted_secret=credential.encrypted_secret,
            pcrs=self._settings.pcrs,
            server_spki_sha256=spki,
        ).encode()

    async def _judge(self, session_id: bytes, session: Session, evidence: Evidence) -> Proven:
        message = Begin.parse(session.first_message)
        if message.attestation == "none":
            return judge_software(message, session_id, session, evidence)
        # By the very bytes of the first message: what was challenged is what is judged.
        tpm = self._identify(session.first_message, message)
        entry = await self._authority.inventory.get(session.identity)
        asked = asked_of(session_id, session, self._settings)
        found = judge_tpm(tpm.keys, asked, evidence, self._trust.reference_for(entry), self._settings)
        until = await self._second.attested_until(session.identity)
        return attested_by(found, tpm.attestation, until, tpm.ek_sha256, tpm.keys)

    def _identify(self, raw: bytes, message: Begin) -> verdict.TpmIdentity:
        """The verdict on a first message, kept for the second: it is most of what an enrolment costs. Another process
        comes to the same."""
        digest = hashlib.sha256(raw).digest()
        tpm = self._identified.pop(digest, None)
        if tpm is None:
            tpm = verdict.identify(message, self._makers, self._clock.now())
            check_class(tpm.attestation, self._settings)
        self._identified[digest] = tpm
        if len(self._identified) > MAX_IDENTIFIED:
            self._identified.popitem(last=False)
        return tpm

    def _check_rate(self, origin: Origin) -> None:
        if not self._rate.take(source_of(origin.address), self._clock.monotonic()):
            raise Fault(Reason.ENROLMENT_RATE_LIMITED)

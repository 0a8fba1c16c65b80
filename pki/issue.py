"""Issuing a certificate, in steps that may each be the last thing this process does.

1. Draft: the profile decides what the certificate says; the bytes to be signed are final.
2. Lint those bytes.
3. Reserve, in one transaction: the identity may have a certificate, the token is spent, serial and bytes are on record,
   the audit log has it.
4. Sign those bytes with the CA's key, and prove that they are what was signed.
5. Record, in one transaction: the certificate, the identity's new state, what was attested, the answer to give.

Stopped before 3, nothing happened. Stopped after it, the row tells what may have been signed, nobody has the signature,
and the same token serves the same TPM again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import AttestationClass, Renewal
from foundation.reasons import Reason
from pki import lint
from pki.books import Books, Work
from pki.entries import Attested, Entry, check_attested, check_enrollable
from pki.inventory import read_claim, write_certified
from pki.ledger import Certificate, Step, keep_answer, mark_abandoned, mark_issued, reserve
from pki.profile import SERIAL_BITS, Issuer, Lifetimes, ProfileName, Terms, draft_certificate
from pki.revocation import check_issuer
from pki.signer import Draft, Signer, seal_certificate
from pki.tokens import TokenUse, spend_token

_SERIAL_ATTEMPTS = 3
_BODY = serialization.Encoding.DER


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What was issued. `serial` is lower-case hex; `chain` begins with the leaf and ends with the root, each DER; times
    are whole seconds since the Unix epoch."""

    identity: SpiffeId
    serial: str
    chain: tuple[bytes, ...]
    not_before: int
    not_after: int
    attestation: AttestationClass
    attested_until: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Keep `compose(issued)` under `key` (a SHA-256) for the certificate's life, in the transaction that records it."""

    key: bytes
    compose: Callable[[IssuedCertificate], bytes]


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """Ask for one certificate. `spki` is the key as DER SubjectPublicKeyInfo: possession of its private half, and the
    attestation, have been verified by the caller.

    attested: what attestation proved just now; None where none is asked (operators, services, servers).
    token: to be spent. renews: the serial (hex) that must still be the identity's newest; empty when it need not.
    lifetime: seconds, 0 for the profile's own. names: DNS names and IP addresses, for gateways and servers alone."""

    identity: SpiffeId
    profile: ProfileName
    spki: bytes
    actor: str
    attested: Attested | None = None
    token: TokenUse | None = None
    renews: str = ""
    lifetime: int = 0
    names: tuple[str, ...] = ()
    answer: Answer | None = None


class Issuing:
    """The pipeline, over one issuing CA."""

    def __init__(self, books: Books, signer: Signer, root: x509.Certificate, lifetimes: Lifetimes) -> None:
        self._books = books
        self._signer = signer
        self._lifetimes = lifetimes
        self._issuer = Issuer.of(signer.certificate)
        self._draft = Draft(signer.certificate)
        self._above = (signer.certificate.public_bytes(_BODY), root.public_bytes(_BODY))

    async def issue(self, request: IssueRequest) -> IssuedCertificate:
        """Issue one certificate. Raises `Fault`: PROFILE_REFUSED, WEAK_KEY, LINT_FAILED (nothing happened);
        INVENTORY_UNKNOWN, INVENTORY_STATE, ATTESTATION_LATCHED, EK_CHANGED, EK_TAKEN, CLOCK_REGRESSED, CLONE_SUSPECTED,
        TOKEN_*, AUDIT_FAILED (nothing happened); SIGNER_FAILED, SERIAL_CONFLICT, CONFLICT (begin again)."""
        terms, draft = await self._reserve(request)
        try:
            certificate = await seal_certificate(self._signer, draft)
            issued = self._issued(request, terms, certificate)
            await self._record(request, issued)
        except Exception:
            await self._abandon(request, format(terms.serial, "x"))
            raise
        return issued

    async def _reserve(self, request: IssueRequest) -> tuple[Terms, x509.Certificate]:
        for attempt in range(1, _SERIAL_ATTEMPTS + 1):
            terms = self._terms(request)
            draft = self._draft.certificate(draft_certificate(terms, self._issuer))
            lint.check(draft, terms, self._issuer)
            try:
                async with self._books.writing() as work:
                    await self._reserve_row(work, request, terms, draft)
            except Fault as fault:
                if fault.reason is not Reason.SERIAL_CONFLICT or attempt == _SERIAL_ATTEMPTS:
                    raise
            else:
                return terms, draft
        raise AssertionError  # the last attempt returned or raised

    def _terms(self, request: IssueRequest) -> Terms:
        attested = request.attested or Attested(AttestationClass.NONE, 0.0)
        return Terms(
            profile=self._lifetimes.profile(request.profile),
            identity=request.identity,
            spki=request.spki,
            serial=random_serial(),
            now=int(self._books.clock.now()),
            lifetime=request.lifetime,
            attestation=attested.attestation,
            attested_until=int(attested.until),
            names=request.names,
        )

    async def _reserve_row(self, work: Work, request: IssueRequest, terms: Terms, draft: x509.Certificate) -> None:
        await check_issuer(work, self._issuer.key_identifier)
        await _checked_entry(work, request)
        row = _row(request, terms, draft)
        await reserve(work, row)
        if request.token is not None:
            await spend_token(work, request.token, row.serial)
        work.tell(
            "certificate.issued",
            request.actor,
            request.identity,
            serial=row.serial,
            profile=request.profile.value,
            not_after=row.not_after,
            attestation=terms.attestation.value,
        )

    async def _record(self, request: IssueRequest, issued: IssuedCertificate) -> None:
        async with self._books.writing() as work:
            entry = await _checked_entry(work, request)
            await mark_issued(work, issued.serial, issued.chain[0])
            if request.profile is not ProfileName.SERVER:  # a listener's says nothing of the identity as a caller
                renewal = _renewal(request, issued)
                await write_certified(work, entry, issued.serial, request.attested, request.actor, renewal)
            if request.answer is not None:
                await keep_answer(work, request.answer.key, request.answer.compose(issued), issued.not_after)

    async def _abandon(self, request: IssueRequest, serial: str) -> None:
        # Should this fail too, the reservation is given up by its age.
        with suppress(Fault):
            async with self._books.writing() as work:
                work.tell("certificate.abandoned", request.actor, request.identity, serial=serial)
                await mark_abandoned(work, serial)

    def _issued(self, request: IssueRequest, terms: Terms, certificate: x509.Certificate) -> IssuedCertificate:
        return IssuedCertificate(
            identity=request.identity,
            serial=format(terms.serial, "x"),
            chain=(certificate.public_bytes(_BODY), *self._above),
            not_before=int(certificate.not_valid_before_utc.timestamp()),
            not_after=int(certificate.not_valid_after_utc.timestamp()),
            attestation=terms.attestation,
            attested_until=terms.attested_until,
        )


def random_serial() -> int:
    """A serial of 144 bits of which 143 come from the system's randomness: never zero, never guessed, never twice."""
    return 1 << SERIAL_BITS | secrets.randbits(SERIAL_BITS)


async def _checked_entry(work: Work, request: IssueRequest) -> Entry:
    """The identity's entry, when it may have this certificate. Both transactions ask this: what was true at the
    reservation may have ended while the key was signing."""
    ek_sha256 = request.attested.ek_sha256 if request.attested else b""
    entry, holder = await read_claim(work.connection, request.identity, ek_sha256)
    check_enrollable(entry)
    if request.renews and entry.current_serial != request.renews:
        raise Fault(Reason.CLONE_SUSPECTED, field="serial", internal=f"newest is {entry.current_serial}")
    if request.attested is not None:
        check_attested(entry, holder, request.attested)
    return entry


def _renewal(request: IssueRequest, issued: IssuedCertificate) -> Renewal | None:
    """What a gateway may let streams go on by: without a TPM nothing says that the holder is the same."""
    if not request.renews or request.attested is None or not request.attested.ak_name:
        return None
    return Renewal(request.renews, issued.serial, issued.not_after)


def _row(request: IssueRequest, terms: Terms, draft: x509.Certificate) -> Certificate:
    return Certificate(
        serial=format(terms.serial, "x"),
        identity=request.identity,
        profile=request.profile.value,
        step=Step.RESERVED,
        tbs=draft.tbs_certificate_bytes,
        certificate=b"",
        not_before=int(draft.not_valid_before_utc.timestamp()),
        not_after=int(draft.not_valid_after_utc.timestamp()),
        reserved_at=0.0,
        issued_at=0.0,
    )
